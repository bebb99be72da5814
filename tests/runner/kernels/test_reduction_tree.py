"""The tree of sums over neurons: the same bits with any number of threads, and those of a NumPy twin."""

from itertools import pairwise

import numpy as np
import pytest

from tsconvert.runner.kernels import reduction_tree as tree
from tsconvert.runner.kernels.ffn.token_ffn import end_leaves, take_share
from tsconvert.runner.kernels.parameters import DEPTH, LEAVES, LINE, SUMS

RNG = np.random.default_rng(17)
WIDTH = 50


def twin(sums_LD):
    """Neighbours are added up until one is left."""
    while len(sums_LD) > 1:
        sums_LD = sums_LD[::2] + sums_LD[1::2]
    return sums_LD[0]


def by_threads(params_of, sums_LD, threads):
    """What each thread makes of all threads' sums."""
    partial = np.full((threads, SUMS * WIDTH), np.nan, np.float32)
    whole = np.full((threads, DEPTH * WIDTH), np.nan, np.float32)
    params = params_of(threads=threads, width=WIDTH, partial=partial, whole=whole)
    for thread in range(threads):
        held = 0
        for leaf in range(tree.first_leaf(params, thread), tree.first_leaf(params, thread + 1)):
            assert held < SUMS
            partial[thread, held * WIDTH : (held + 1) * WIDTH] = sums_LD[leaf]
            held = tree.join_sums(params, thread, leaf, held + 1)
    for thread in range(threads):
        tree.join_all(params, thread)
    return whole[:, :WIDTH]


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 5, 7, 16, 31, 32, 40])
def test_any_number_of_threads_adds_up_the_same_tree(params_of, threads):
    sums_LD = RNG.standard_normal((LEAVES, WIDTH)).astype(np.float32) * 10.0 ** RNG.integers(-3, 4, (32, 1))
    sums_LD = sums_LD.astype(np.float32)
    expected_D = twin(sums_LD)
    for x_D in by_threads(params_of, sums_LD, threads):
        np.testing.assert_array_equal(x_D, expected_D)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("found", [0, 5, 100, 1000])
def test_leaves_are_runs_of_what_all_threads_found(params_of, threads, found):
    """However many look for neurons and share them out, the leaves are those of the whole list."""
    whole = np.sort(RNG.choice(2000, found, replace=False)).astype(np.int32)
    # of the second of two experts
    listed, lengths = np.zeros((threads, 2, 2000), np.int32), np.zeros((threads, 2 * LINE), np.int32)
    for thread, numbers in enumerate(np.array_split(whole, threads)):
        listed[thread, 1, : len(numbers)], lengths[thread, LINE] = numbers, len(numbers)
    mine, ends = np.zeros((threads, 2, 2000), np.int32), np.zeros((threads, 2, LEAVES), np.int32)
    params = params_of(threads=threads, neurons=2000, listed=listed, found=lengths, mine=mine, ends=ends)
    starts = [tree.leaf_start(params, found, leaf) for leaf in range(LEAVES + 1)]
    firsts = [tree.first_leaf(params, thread) for thread in range(threads + 1)]
    kept, cut = whole % 3 != 0, []
    for thread in range(threads):
        taken = mine[thread, 1, : take_share(params, thread, 1)]
        left = taken[taken % 3 != 0]
        mine[thread, 1, : len(left)] = left
        end_leaves(params, thread, 1, len(left))
        count = firsts[thread + 1] - firsts[thread]
        cut += [part.tolist() for part in np.split(left, ends[thread, 1, :count])[:count]]
        assert ends[thread, 1, count - 1] == len(left)
    expected = [whole[a:b][kept[a:b]].tolist() for a, b in pairwise(starts)]
    assert cut == expected
    sizes = np.diff([starts[first] for first in firsts])
    assert sizes.max() - sizes.min() <= 8 + -(-found // LEAVES)
