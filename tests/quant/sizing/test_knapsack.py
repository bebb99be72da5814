"""The choice against all choices there are."""

from itertools import product

import numpy as np
import pytest

from tsconvert.quant.sizing.knapsack import choose


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed: int):
    rng = np.random.default_rng(seed)
    costs = [np.sort(rng.integers(1, 1000, 4)).astype(float) for _ in range(6)]
    losses = [np.sort(rng.random(4))[::-1].copy() for _ in range(6)]
    budget = float(rng.uniform(sum(cost.min() for cost in costs), sum(cost.max() for cost in costs)))
    found = choose(costs, losses, budget)

    def total(values: list[np.ndarray], which: tuple[int, ...]) -> float:
        return sum(float(each[k]) for each, k in zip(values, which, strict=True))

    fitting = [which for which in product(range(4), repeat=6) if total(costs, which) <= budget]
    near = [which for which in fitting if total(costs, which) >= 0.996 * budget] or fitting
    assert found is not None
    assert total(costs, found) <= budget
    assert total(losses, found) <= min(total(losses, which) for which in near) + 1e-3


def test_budgets_below_and_above_all_choices():
    costs, losses = [np.array([10.0, 20.0])] * 3, [np.array([1.0, 0.5])] * 3
    assert choose(costs, losses, 29.9) is None
    assert choose(costs, losses, 30.0) == [0, 0, 0]
    assert choose(costs, losses, 1e9) == [1, 1, 1]
    # what costs more is taken even where it gains nothing, so that the size is met
    assert choose(costs, [np.array([0.0, 0.0])] * 3, 60.0) == [1, 1, 1]


def test_many_items_meet_the_budget():
    rng = np.random.default_rng(0)
    sizes = rng.choice([221184, 663552, 884736, 28311552], 211, p=[0.4, 0.3, 0.29, 0.01])
    costs = [np.array([4.5, 5.0, 5.5, 6.0, 8.5, 16.0]) / 8 * size for size in sizes]
    losses = [rng.random() * np.array([1.0, 0.5, 0.25, 0.15, 0.01, 0.0]) for _ in sizes]
    for bits in (4.6, 5.2, 7.0):
        budget = bits / 8 * float(sizes.sum())
        found = choose(costs, losses, budget)
        assert found is not None
        spent = sum(float(cost[k]) for cost, k in zip(costs, found, strict=True))
        assert 0.995 * budget <= spent <= budget
