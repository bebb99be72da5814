"""Attention over the cache, a ring of slots, against NumPy."""

import numpy as np
import pytest

from tsconvert.model.files.gguf import ggml
from tsconvert.runner.kernels.attention import attend_heads, place_rows, rotate, rotate_halves, softmax
from tsconvert.runner.kernels.parameters import SCRATCH_BYTES
from tsconvert.runner.kernels.weight_types import input_bytes, type_record

RNG = np.random.default_rng(3)
HEADS, HEAD_DIM, SLOTS, SHARED = 3, 64, 24, 2  # three cached heads, of which the second is asked by two queries


def attend(params_of, layer_of, type_name, first, end, head_dim=HEAD_DIM, cap=0.0):
    """What the kernels make of random keys and values of positions 0 to end, and the same in NumPy."""
    size = ggml.row_bytes(type_name, head_dim)
    key_PHD, value_PHD = (RNG.standard_normal((end, HEADS, head_dim)).astype(np.float32) for _ in range(2))
    caches = [np.zeros((HEADS, SLOTS, size), np.uint8) for _ in range(2)]
    params = params_of(
        cache_type=type_record(type_name), cache_row=size, head_dim=head_dim, heads=SHARED, kv_heads=1,
        attention_scale=head_dim**-0.5, attention_softcap=cap,
        scores=np.zeros((1, SHARED * (SLOTS + 32)), np.float32), scratch=np.zeros((1, SCRATCH_BYTES), np.uint8),
        queries=np.zeros((1, SHARED * input_bytes(head_dim, ["Q8_0"])), np.uint8),
    )  # fmt: skip
    layer = layer_of(slots=SLOTS)
    for p in range(end):
        for x_PHD, cache in zip((key_PHD, value_PHD), caches, strict=True):
            cut, whole = 32, HEADS * head_dim
            for start, stop in ((0, cut), (cut, whole)):  # as two threads do it
                place_rows(params, layer, x_PHD[p].ctypes.data, start, stop, cache.ctypes.data + p % SLOTS * size)
    query, out = RNG.standard_normal((SHARED, head_dim)).astype(np.float32), np.zeros((SHARED, head_dim), np.float32)
    keys, values = (cache[1].ctypes.data for cache in caches)
    attend_heads(params, 0, layer, SHARED, first, end, query.ctypes.data, keys, values, out.ctypes.data)
    score = query @ key_PHD[first:end, 1].T / np.sqrt(head_dim)
    score = cap * np.tanh(score / cap) if cap else score
    share = np.exp(score - score.max(axis=1, keepdims=True))
    return out, share / share.sum(axis=1, keepdims=True) @ value_PHD[first:end, 1]


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 20), (7, 24), (3, 26), (20, 40), (30, 31), (25, 49)])
@pytest.mark.parametrize(("type_name", "bound"), [("F32", 1e-5), ("F16", 2e-3), ("Q8_0", 4e-2)])
def test_a_ring_of_slots(params_of, layer_of, type_name, bound, first, end):
    ours, twin = attend(params_of, layer_of, type_name, first, end)
    np.testing.assert_allclose(ours, twin, rtol=0, atol=bound)


def test_a_soft_cap(params_of, layer_of):
    ours, twin = attend(params_of, layer_of, "F32", 3, 26, cap=0.7)
    np.testing.assert_allclose(ours, twin, rtol=0, atol=1e-5)


def test_heads_of_an_odd_size(params_of, layer_of):
    ours, twin = attend(params_of, layer_of, "F16", 2, 19, head_dim=22)
    np.testing.assert_allclose(ours, twin, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("head_dim", "rotated"), [(16, 16), (20, 12), (6, 2)])
def test_rotation_turns_neighbouring_pairs(params_of, head_dim, rotated):
    x_HD, angle = RNG.standard_normal((5, head_dim)).astype(np.float32), RNG.uniform(0, 6, rotated // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    twin, flat, params = x_HD.copy(), x_HD.reshape(-1).copy(), params_of(head_dim=head_dim, rotated=rotated)
    turned = (x_HD[:, 0:rotated:2] + 1j * x_HD[:, 1:rotated:2]) * np.exp(1j * angle)
    twin[:, 0:rotated:2], twin[:, 1:rotated:2] = turned.real, turned.imag
    cut = flat.size // 4 * 2
    for first, end in ((0, cut), (cut, flat.size)):
        rotate(params, flat.ctypes.data, cos.ctypes.data, sin.ctypes.data, first, end)
    np.testing.assert_allclose(flat.reshape(5, head_dim), twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("head_dim", "rotated"), [(16, 16), (20, 12), (6, 2)])
def test_rotation_of_halves(params_of, head_dim, rotated):
    x_D, angle = RNG.standard_normal(head_dim).astype(np.float32), RNG.uniform(0, 6, rotated // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    half, twin = rotated // 2, x_D.copy()
    turned = (x_D[:half] + 1j * x_D[half:rotated]) * np.exp(1j * angle)
    twin[:half], twin[half:rotated] = turned.real, turned.imag
    rotate_halves(params_of(head_dim=head_dim, rotated=rotated), x_D.ctypes.data, cos.ctypes.data, sin.ctypes.data)
    np.testing.assert_allclose(x_D, twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 7, 16, 17, 100])
def test_softmax(params_of, count):
    x_P, scale = RNG.standard_normal(count + 16).astype(np.float32) * 30, np.float32(0.3)
    twin = np.exp((x_P[:count] - x_P[:count].max()).astype(np.float64) * scale)
    total = softmax(params_of(), x_P.ctypes.data, count, scale)
    np.testing.assert_allclose(x_P[:count], twin, rtol=5e-6, atol=1e-37)
    np.testing.assert_allclose(total, twin.sum(), rtol=5e-6)
