"""The rank of each predictor: the ranks that are tried, and how a budget of weights is spent on them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...common.errors import TsconvertError
from ...model.spec import ModelSpec
from ..cost import STEP, check_rank
from ..report import FFNReport
from .candidate_store import Candidate


def ranks_to_try(width: int, highest: int | None) -> Iterator[int]:
    """Ranks in rising order: 32, 64, 96, 128, then in steps of half a doubling, up to the width or ``highest``."""
    rank = STEP
    while rank <= width and (highest is None or rank <= highest):
        yield rank
        rank += STEP * max(1, 1 << max(0, (rank // (2 * STEP)).bit_length() - 1))


def try_ranks(ranks: Iterator[int], attempt: Callable[[int], Candidate], max_density: float | None) -> list[Candidate]:
    """Candidates in rising order of rank, up to the first that is no better than the one before it.

    Every candidate keeps the energy asked for, because its threshold is calibrated so; what differs is how many
    neurons it must predict for that.
    """
    found: list[Candidate] = []
    for rank in ranks:
        found.append(attempt(rank))
        if len(found) > 1 and not _better(found[-1][1], found[-2][1], max_density):
            break
    return found


def _better(one: FFNReport, other: FFNReport, max_density: float | None) -> bool:
    """Fewer bytes; above ``max_density`` a lower density."""
    if max_density is not None and other.predicted_density > max_density:
        return one.predicted_density < other.predicted_density
    return one.bytes_predicted < other.bytes_predicted


def highest_rank(spec: ModelSpec, budget: float | None) -> int | None:
    """The highest rank worth trying: twice what every FFN could have, so that some may have more than others.

    Args:
        budget: share of the model's parameters, 0 to 1; None is no limit.
    """
    if budget is None:
        return None
    whole = budget * spec.parameters / (spec.width + spec.neurons)
    return int(min(whole, max(STEP, 2 * whole / (spec.layers * spec.ffns))))


def check_budget(spec: ModelSpec, rank: int | None, budget: float | None, *, everywhere: bool) -> None:
    """Refuse a fixed rank that no FFN is wide enough for or that cannot be paid for, or a budget too small for any.

    Args:
        rank: None is to be searched for.
        everywhere: every FFN must have a predictor.
    """
    check_rank(spec, rank)
    if budget is None:
        return
    ffns = spec.layers * spec.ffns if rank is not None or everywhere else 1
    share = (rank or STEP) * ffns * (spec.width + spec.neurons) / spec.parameters
    if share > budget:
        what = f"predictors of {share:.1%} of the model's parameters, over the --budget"
        if rank is not None:
            raise TsconvertError(
                f"--rank {rank}: {what}; choose --rank {int(rank * budget / share)} or less, or a larger --budget"
            )
        where = "every FFN" if everywhere else "one FFN"
        raise TsconvertError(f"--budget {budget:g}: rank {STEP} for {where} makes {what}; choose {share:.2g} or more")


@dataclass(frozen=True)
class Choice:
    """One way to treat an FFN."""

    weights: float
    """Weights that it adds to the model."""
    bytes: float
    """Bytes that a token reads."""
    candidate: int | None
    """None: exact mode."""


def choices(
    candidates: Sequence[FFNReport], weights: Sequence[int], max_density: float | None, *, exact: bool
) -> list[Choice]:
    """What can be done with an FFN.

    Args:
        candidates: with predictors of so many ``weights`` each.
        max_density: where some candidates are within it only those are choices; else only the nearest one is.
        exact: leaving the FFN to exact mode is a choice.
    """
    found = [i for i, report in enumerate(candidates) if report.used]
    if max_density is not None and found:
        within = [i for i in found if candidates[i].predicted_density <= max_density]
        found = within or [min(found, key=lambda i: candidates[i].predicted_density)]
    ways = [Choice(weights[i], candidates[i].bytes_predicted * candidates[i].tokens, i) for i in found]
    if exact or not ways:
        ways.append(Choice(0, max((report.bytes_exact * report.tokens for report in candidates), default=0.0), None))
    return ways


def spend(ffns: Sequence[Sequence[Choice]], budget: float | None) -> list[int | None]:
    """The candidate chosen for each FFN (None: exact mode) that reads the fewest bytes within ``budget`` weights.

    Greedy along the lower convex hull of each FFN's choices, where the next weights save most first: the optimum up to
    the last step's remainder (the multiple-choice knapsack's linear relaxation, Sinha and Zoltners 1979).
    """
    hulls = [_hull(ways) for ways in ffns]
    if budget is None:
        return [hull[-1].candidate for hull in hulls]
    at = [0] * len(hulls)
    left = budget - sum(hull[0].weights for hull in hulls)
    steps = sorted(
        (_slope(hull[i], hull[i + 1]), ffn, i) for ffn, hull in enumerate(hulls) for i in range(len(hull) - 1)
    )
    for _, ffn, i in steps:
        more = hulls[ffn][i + 1].weights - hulls[ffn][i].weights
        if at[ffn] == i and more <= left:
            at[ffn], left = i + 1, left - more
    return [hull[i].candidate for hull, i in zip(hulls, at, strict=True)]


def _hull(ways: Sequence[Choice]) -> list[Choice]:
    """The choices that are best at some price of a weight, from the fewest weights to the fewest bytes."""
    hull: list[Choice] = []
    for way in sorted(ways, key=lambda way: (way.weights, way.bytes)):
        if hull and way.bytes >= hull[-1].bytes:
            continue
        while len(hull) > 1 and _slope(hull[-2], way) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(way)
    return hull


def _slope(one: Choice, other: Choice) -> float:
    """Bytes that each further weight adds: negative."""
    return (other.bytes - one.bytes) / (other.weights - one.weights) if other.weights > one.weights else float("-inf")
