"""Threads share rows out in whole units, and those that wait take more of them."""

import numpy as np
import pytest

from tsconvert.runner.kernels.work_shares import Shares, run_start, token_start


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 31, 32, 50, 100, 14336])
def test_runs_are_whole_units_of_nearly_one_size(params_of, rows, threads):
    params = params_of(threads=threads)
    starts = [run_start(params, rows, thread) for thread in range(threads + 1)]
    assert starts[0] == 0
    assert starts[-1] == rows
    assert starts == sorted(starts)
    assert all(start % 32 == 0 for start in starts[:-1])
    sizes = np.diff(starts)
    assert sizes.max() - sizes.min() <= 63


def test_one_token_is_everybody_s_and_of_a_block_each_has_some(params_of):
    assert [token_start(params_of(threads=3, tokens=1), thread) for thread in range(4)] == [0, 1, 2, 3]
    assert [token_start(params_of(threads=3, tokens=10), thread) for thread in range(4)] == [0, 3, 6, 10]


def settled(speeds_N: list[float], steps: int = 1000) -> Shares:
    """Shares after steps of threads of these speeds, each of which waits for the last one."""
    shares, waited_N = Shares(len(speeds_N)), np.zeros(len(speeds_N), np.int64)
    for _ in range(steps):
        time_N = np.diff(shares.edges) / np.array(speeds_N)
        waited_N = waited_N + (time_N.max() - time_N).astype(np.int64)
        shares.follow(waited_N)
    return shares


@pytest.mark.parametrize("speeds_N", [[1.0, 1.0], [1.0, 2.0], [3.0, 1.0, 3.0], [2.0] * 4 + [1.0] * 8])
def test_shares_become_those_of_the_speeds(speeds_N):
    found_N = np.diff(settled(speeds_N).edges) / (1 << 16)
    np.testing.assert_allclose(found_N, np.array(speeds_N) / sum(speeds_N), rtol=0.05)


def test_a_thread_that_never_comes_keeps_some_rows():
    assert np.diff(settled([1.0, 1e-9]).edges).min() == pytest.approx((1 << 16) / 16, rel=0.02)


@pytest.mark.parametrize("waited_N", [[0, 0], [60, 99], [-(10**6), 10**6]])
def test_nothing_moves_for_a_few_looks_or_counters_that_began_anew(waited_N):
    shares = Shares(2)
    before = shares.edges.copy()
    shares.follow(np.array(waited_N))
    assert (shares.edges == before).all()


@pytest.mark.parametrize("rows", [1, 50, 14336])
def test_uneven_runs_are_whole_units_and_all_rows(params_of, rows):
    edges = settled([5.0, 1.0, 2.0]).edges
    params = params_of(threads=3, edges=edges.ctypes.data)
    starts = [run_start(params, rows, thread) for thread in range(4)]
    assert starts == sorted(starts)
    assert (starts[0], starts[-1]) == (0, rows)
    assert all(start % 32 == 0 for start in starts[:-1])
    if rows == 14336:
        np.testing.assert_allclose(np.diff(starts) / rows, [0.625, 0.125, 0.25], atol=0.01)
