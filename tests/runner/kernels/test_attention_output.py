"""The largest of what a token attended to, against NumPy's sort."""

import numpy as np
import pytest

from tsconvert.runner.kernels import attention_output

RNG = np.random.default_rng(11)


def floats(count, zeros):
    x = RNG.standard_normal(count).astype(np.float32) * np.exp(RNG.standard_normal(count)).astype(np.float32)
    x[RNG.random(count) < zeros] = 0
    return x


@pytest.mark.parametrize("zeros", [0.0, 0.7])
@pytest.mark.parametrize("count", [1, 20, 64, 577, 4096])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_the_largest_are_kept_and_hardly_any_more(params_of, count, share, zeros):
    x, kept = floats(count, zeros), max(1, int(share * count))
    listed = np.full(count + 1, -1, np.int32)
    found = attention_output.list_largest(params_of(), x.ctypes.data, count, kept, listed.ctypes.data)
    least = np.sort(np.abs(x))[::-1][kept - 1]
    mine = listed[:found].tolist()
    assert mine == sorted(set(mine))
    assert set(np.flatnonzero(np.abs(x) >= least)) <= set(mine)  # at least as many as were asked for
    assert (np.abs(x[mine]) >= least * (1 - 1 / 128)).all()
    rest = x.copy()
    assert attention_output.keep_largest(params_of(), rest.ctypes.data, count, kept) == found
    np.testing.assert_array_equal(np.flatnonzero(rest), [i for i in mine if x[i]])
    np.testing.assert_array_equal(rest[mine], x[mine])


def test_equal_sizes_are_kept_together(params_of):
    x = np.array([1, -1, 0.5, 1, 0.25], np.float32)
    listed = np.zeros(6, np.int32)
    assert attention_output.list_largest(params_of(), x.ctypes.data, 5, 1, listed.ctypes.data) == 3
    assert listed[:3].tolist() == [0, 1, 3]


def test_no_number_is_left_out_that_is_none(params_of):
    """Infinity and NaN are larger than any: a model whose numbers overflowed must not look sound."""
    x = np.array([1, np.nan, -np.inf, 2], np.float32)
    listed = np.zeros(5, np.int32)
    assert attention_output.list_largest(params_of(), x.ctypes.data, 4, 2, listed.ctypes.data) == 2
    assert listed[:2].tolist() == [1, 2]
