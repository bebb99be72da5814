"""The tree of sums over neurons: the same bits with any number of threads, and those of a NumPy twin."""

from itertools import pairwise

import numpy as np
import pytest

from tsconvert.runner.kernels import leaves, neurons, tables

RNG = np.random.default_rng(17)
WIDTH = 50


def twin(sums_LD):
    """Neighbours are added up until one is left."""
    while len(sums_LD) > 1:
        sums_LD = sums_LD[::2] + sums_LD[1::2]
    return sums_LD[0]


def by_threads(sums_LD, threads):
    """What each thread adds to its residual."""
    arrays = {name: np.zeros((1, 1), np.float32) for name in tables.ARRAYS}
    arrays["partial"] = np.full((threads, tables.SUMS * WIDTH), np.nan, np.float32)
    arrays["whole"] = np.full((threads, tables.DEPTH * WIDTH), np.nan, np.float32)
    m = tables.new_table({tables.WIDTH: WIDTH}, 0.0, arrays).ctypes.data
    for thread in range(threads):
        first, held = leaves.first_leaf(thread, threads), 0
        for leaf in range(first, leaves.first_leaf(thread + 1, threads)):
            assert held < tables.SUMS
            arrays["partial"][thread, held * WIDTH : (held + 1) * WIDTH] = sums_LD[leaf]
            held = leaves.join_sums(m, thread, first, leaf, held + 1)
    x_ND = np.zeros((threads, WIDTH), np.float32)
    for thread in range(threads):
        leaves.add_whole(m, thread, threads, x_ND[thread].ctypes.data)
    return x_ND


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 5, 7, 16, 31, 32, 40])
def test_any_number_of_threads_adds_up_the_same_tree(threads):
    sums_LD = RNG.standard_normal((tables.LEAVES, WIDTH)).astype(np.float32) * 10.0 ** RNG.integers(-3, 4, (32, 1))
    sums_LD = sums_LD.astype(np.float32)
    expected_D = twin(sums_LD)
    for x_D in by_threads(sums_LD, threads):
        np.testing.assert_array_equal(x_D, expected_D)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("found", [0, 5, 100, 1000])
def test_leaves_are_runs_of_what_all_threads_found(threads, found):
    """However many look for neurons and share them out, the leaves are those of the whole list."""
    whole = np.sort(RNG.choice(2000, found, replace=False)).astype(np.int32)
    per_thread = np.array_split(whole, threads)
    listed, lengths = np.zeros((threads, 2000), np.int32), np.zeros((threads, 16), np.int32)
    for thread, numbers in enumerate(per_thread):
        listed[thread, : len(numbers)], lengths[thread, 0] = numbers, len(numbers)
    starts = [leaves.leaf_start(found, leaf) for leaf in range(tables.LEAVES + 1)]
    kept, cut = whole % 3 != 0, []
    for thread in range(threads):
        mine, ends = np.zeros(2000, np.int32), np.zeros(tables.LEAVES, np.int32)
        taken = neurons.take_share(
            listed.ctypes.data, listed.strides[0], lengths.ctypes.data, lengths.strides[0], thread, threads,
            mine.ctypes.data, ends.ctypes.data,
        )  # fmt: skip
        left = mine[:taken][mine[:taken] % 3 != 0]
        mine[: len(left)] = left
        count = leaves.first_leaf(thread + 1, threads) - leaves.first_leaf(thread, threads)
        neurons.end_leaves(mine.ctypes.data, len(left), ends.ctypes.data, count)
        cut += [part.tolist() for part in np.split(left, ends[:count])[:count]]
        assert ends[count - 1] == len(left)
    expected = [whole[a:b][kept[a:b]].tolist() for a, b in pairwise(starts)]
    assert cut == expected
    sizes = np.diff([starts[leaves.first_leaf(thread, threads)] for thread in range(threads + 1)])
    assert sizes.max() - sizes.min() <= 8 + -(-found // tables.LEAVES)
