"""Attention over the cache, a ring of slots, against NumPy."""

import numpy as np
import pytest

from tsconvert.quant.types import ggml
from tsconvert.runner.kernels import attention
from tsconvert.runner.kernels.products import SCRATCH_BYTES
from tsconvert.runner.kernels.rows import FROM_FLOAT, input_bytes, type_table

RNG = np.random.default_rng(3)
HEADS, HEAD_DIM, SLOTS, SHARED = 3, 64, 24, 2  # three cached heads, of which the second is asked by two queries


def attend(type_name, first, end, head_dim=HEAD_DIM):
    """What the kernels make of random keys and values of positions 0 to end, and the same in NumPy."""
    types, kind = type_table([type_name]), ggml.TYPES[type_name].id
    size = ggml.row_bytes(type_name, head_dim)
    key_PHD, value_PHD = (RNG.standard_normal((end, HEADS, head_dim)).astype(np.float32) for _ in range(2))
    caches = [np.zeros((HEADS, SLOTS, size), np.uint8) for _ in range(2)]
    convert = {"F16": 2, "F32": 4}.get(type_name, types[kind, FROM_FLOAT])
    for p in range(end):
        for x_PHD, cache in zip((key_PHD, value_PHD), caches, strict=True):
            cut, whole = 32, HEADS * head_dim
            for start, stop in ((0, cut), (cut, whole)):  # as two threads do it
                place = cache.ctypes.data + p % SLOTS * size
                attention.place_rows(x_PHD[p].ctypes.data, start, stop, head_dim, place, SLOTS * size, convert, size)
    query, out = RNG.standard_normal((SHARED, head_dim)).astype(np.float32), np.zeros((SHARED, head_dim), np.float32)
    scores, prepared = (
        np.zeros(SHARED * (SLOTS + 32), np.float32),
        np.zeros((SHARED, input_bytes(head_dim, ["Q8_0"])), np.uint8),
    )
    scratch = np.zeros(SCRATCH_BYTES, np.uint8)
    attention.attend_heads(
        types.ctypes.data, kind, size, SLOTS, head_dim, SHARED, first, end, query.ctypes.data,
        caches[0][1].ctypes.data, caches[1][1].ctypes.data, out.ctypes.data, scores.ctypes.data, prepared.ctypes.data,
        prepared.strides[0], scratch.ctypes.data,
    )  # fmt: skip
    score = query @ key_PHD[first:end, 1].T / np.sqrt(head_dim)
    share = np.exp(score - score.max(axis=1, keepdims=True))
    return out, share / share.sum(axis=1, keepdims=True) @ value_PHD[first:end, 1]


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 20), (7, 24), (3, 26), (20, 40), (30, 31), (25, 49)])
@pytest.mark.parametrize(("type_name", "bound"), [("F32", 1e-5), ("F16", 2e-3), ("Q8_0", 4e-2)])
def test_a_ring_of_slots(type_name, bound, first, end):
    ours, twin = attend(type_name, first, end)
    np.testing.assert_allclose(ours, twin, rtol=0, atol=bound)


def test_heads_of_an_odd_size():
    ours, twin = attend("F16", 2, 19, head_dim=22)
    np.testing.assert_allclose(ours, twin, rtol=0, atol=2e-3)
