"""One choice for each item, so that the sum of costs fits a budget and the sum of losses is least."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
_STEPS = 1 << 16  # that the budget is cut into: sums of some hundred rounded costs are true to 0.02 %
_SPARE = 0.004  # share of the budget that may be left over, where that much can be spent


def choose(costs: Sequence[Doubles], losses: Sequence[Doubles], budget: float) -> list[int] | None:
    """The multiple-choice knapsack by dynamic programming over the budget in small steps.

    Args:
        costs: of each item's choices.
        losses: as ``costs``.
        budget: that the sum of costs is at most.

    Returns:
        For each item the number of its choice. The sum of costs is at least 99.6 % of ``budget`` if any sum is. None if
        the least costs exceed the budget.
    """
    least = sum(float(cost.min()) for cost in costs)
    if least > budget:
        return None
    step = budget / _STEPS
    room = int((budget - least) / step) + len(costs)  # what rounding up hid; the sum itself is looked at below
    units = [np.rint((cost - cost.min()) / step).astype(np.int64) for cost in costs]
    tables = _tables(units, losses, room, spare=int(_SPARE * _STEPS)) or _tables(units, losses, room, spare=room)
    assert tables is not None, "the least costs alone fit"
    for end in range(room, -1, -1):
        chosen = _traced(tables, units, end)
        if chosen and sum(float(cost[k]) for cost, k in zip(costs, chosen, strict=True)) <= budget:
            return chosen
    return [int(cost.argmin()) for cost in costs]


def _tables(
    units: Sequence[npt.NDArray[np.int64]], losses: Sequence[Doubles], room: int, spare: int
) -> list[npt.NDArray[np.int8]] | None:
    """For each item and each amount spent so far its best choice, -1 where nothing comes to that; None: nothing does.

    Args:
        spare: the most that is left over.
    """
    best = np.full(room + 1, np.inf)
    best[: spare + 1] = 0
    tables = []
    for unit, loss in zip(units, losses, strict=True):
        now, choice = np.full(room + 1, np.inf), np.full(room + 1, -1, np.int8)
        for k, (spent, lost) in enumerate(zip(unit, loss, strict=True)):
            if spent > room:
                continue
            tried = best[: room + 1 - spent] + lost
            better = tried < now[spent:]
            now[spent:][better], choice[spent:][better] = tried[better], k
        best = now
        tables.append(choice)
    return tables if np.isfinite(best[-1 - len(units) :]).any() else None


def _traced(tables: Sequence[npt.NDArray[np.int8]], units: Sequence[npt.NDArray[np.int64]], end: int) -> list[int]:
    """The choices that spend ``end``; empty where none do."""
    chosen, at = [], end
    for table, unit in zip(reversed(tables), reversed(units), strict=True):
        k = int(table[at])
        if k < 0:
            return []
        chosen.append(k)
        at -= int(unit[k])
    return chosen[::-1]
