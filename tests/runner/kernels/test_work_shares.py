"""Threads share rows out in whole units."""

import numpy as np
import pytest

from tsconvert.runner.kernels.work_shares import run_start, token_start


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
