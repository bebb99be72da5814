"""Each kernel against a few lines of NumPy, odd sizes included."""

import numpy as np
import pytest

from tsconvert.quant import ggml
from tsconvert.runner import kernels
from tsconvert.runner.rows import type_table

TYPES = type_table()
RNG = np.random.default_rng(11)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", [1, 5, 64, 577])
def test_rms_norm(width):
    x_D, weight_D, out_D = floats(width), floats(width), np.empty(width, np.float32)
    kernels.rms_norm(x_D, weight_D, 1e-5, out_D)
    twin = x_D / np.sqrt((x_D.astype(np.float64) ** 2).mean() + 1e-5) * weight_D
    np.testing.assert_allclose(out_D, twin, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 15, 16, 49, 100])
@pytest.mark.parametrize("add", [False, True])
def test_matrix_rows_of_all_threads_make_the_product(rows, threads, add):
    weights_ERC, x_C, out_R = floats(2, rows, 33), floats(33), floats(rows)
    twin = weights_ERC[1] @ x_C + (out_R if add else 0)
    tensor = np.array([weights_ERC.ctypes.data, ggml.TYPES["F32"].id, rows, 33, 33 * 4, rows * 33 * 4])
    for thread in range(threads):
        one = np.zeros(1, np.float32)
        kernels.matrix_rows(TYPES, tensor, 1, x_C.ctypes.data, 0, thread, threads, add, out_R, one)
    np.testing.assert_allclose(out_R, twin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("head_dim", "rotated"), [(16, 16), (20, 12), (6, 2)])
def test_rotation_turns_neighbouring_pairs(head_dim, rotated, threads):
    x_HD = floats(5, head_dim)
    angle = RNG.uniform(0, 6, rotated // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    twin = x_HD.copy()
    turned = (x_HD[:, 0:rotated:2] + 1j * x_HD[:, 1:rotated:2]) * np.exp(1j * angle)
    twin[:, 0:rotated:2], twin[:, 1:rotated:2] = turned.real, turned.imag
    flat = x_HD.reshape(-1).copy()
    for thread in range(threads):
        kernels.rotate_rows(flat, head_dim, cos, sin, thread, threads)
    np.testing.assert_allclose(flat.reshape(5, head_dim), twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_land_in_the_cache(threads):
    x, cache = floats(3 * 10), np.zeros((3, 4, 10), np.float32)
    for thread in range(threads):
        kernels.store_rows(x, 10, cache, 2, thread, threads)
    np.testing.assert_array_equal(cache[:, 2], x.reshape(3, 10))
    assert not cache[:, [0, 1, 3]].any()


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 9), (4, 9)])
def test_attention_of_one_head(first, last):
    q_H, keys_PH, values_PH, out_H = floats(7) * 3, floats(12, 7), floats(12, 7), np.empty(7, np.float32)
    kernels.attend(q_H, keys_PH, values_PH, first, last, np.empty(12, np.float32), out_H)
    score_P = np.exp(keys_PH[first : last + 1] @ q_H / np.sqrt(7))
    np.testing.assert_allclose(out_H, score_P @ values_PH[first : last + 1] / score_P.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("experts", "chosen"), [(4, 2), (8, 2), (5, 5), (3, 1)])
def test_experts_are_the_largest_logits_and_their_softmax(experts, chosen):
    logits_E = floats(experts)
    choice_K, share_K = np.empty(chosen, np.int64), np.empty(chosen, np.float32)
    kernels.choose_experts(logits_E.copy(), choice_K, share_K)
    best = np.argsort(-logits_E)[:chosen]
    np.testing.assert_array_equal(choice_K, best)
    np.testing.assert_allclose(share_K, np.exp(logits_E[best]) / np.exp(logits_E[best]).sum(), rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("neurons", [1, 16, 50, 97])
def test_lists_share_the_neurons_out(neurons, threads):
    owned, rest = [], []
    for thread in range(threads):
        listed_F, rest_F = np.zeros(neurons, np.int32), np.zeros(neurons, np.int32)
        count = kernels.list_rows(thread, threads, listed_F)
        owned.append(listed_F[:count].tolist())
        named = [j for j in owned[-1] if j % 3 == 1]
        listed_F[: len(named)] = named
        count = kernels.list_rest(thread, threads, listed_F, len(named), rest_F)
        rest.append(rest_F[:count].tolist())
    assert sorted(j for mine in owned for j in mine) == list(range(neurons))
    assert all(mine == sorted(mine) for mine in owned)
    assert rest == [[j for j in mine if j % 3 != 1] for mine in owned]
    assert max(map(len, owned)) - min(map(len, owned)) <= kernels.ROW_BLOCK


@pytest.mark.parametrize(
    ("keep", "twin"),
    [
        (lambda listed, n, v: kernels.list_above(listed, n, v, np.float32(0.25)), lambda v: v >= 0.25),
        (kernels.keep_positive, lambda v: v > 0),
        (kernels.keep_nonzero, lambda v: v != 0),
    ],
)
def test_passes_drop_neurons_from_the_list(keep, twin):
    values_F = np.array([0.25, -1, 0, 3, 0.1, -0.0, np.nan, 2], np.float32)
    listed_F = np.array([0, 2, 3, 4, 5, 6, 1, 7], np.int32)
    expected = [j for j in listed_F[:6].tolist() if twin(values_F[j])]
    assert keep(listed_F, 6, values_F) == len(expected)
    assert listed_F[: len(expected)].tolist() == expected


@pytest.mark.parametrize("expert", [0, 1])
def test_products_of_listed_rows_only(expert):
    weights_EFC, x_C, listed_F = floats(2, 9, 21), floats(21), np.array([7, 0, 3, 8], np.int32)
    tensor = np.array([weights_EFC.ctypes.data, ggml.TYPES["F32"].id, 9, 21, 21 * 4, 9 * 21 * 4])
    out_F, one = np.full(9, 5, np.float32), np.zeros(1, np.float32)
    kernels.listed_products(TYPES, tensor, expert, x_C.ctypes.data, 0, listed_F, 3, out_F, one)
    twin = np.full(9, 5, np.float32)
    twin[[7, 0, 3]] = (weights_EFC[expert] @ x_C)[[7, 0, 3]]
    np.testing.assert_allclose(out_F, twin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "twin"),
    [
        (kernels.SWIGLU, lambda g, u: g / (1 + np.exp(-g)) * u),
        (kernels.DRELU, lambda g, u: np.maximum(g, 0) * np.maximum(u, 0)),
        (kernels.REGLU, lambda g, u: np.maximum(g, 0) * u),
    ],
)
def test_activations(activation, twin):
    gate_F, up_F, listed_F = floats(40), floats(40), np.arange(0, 40, 2, dtype=np.int32)
    expected = gate_F.copy()
    expected[:30:2] = twin(gate_F, up_F)[:30:2] * 0.5
    fired = kernels.activate(activation, listed_F, 15, gate_F, up_F, np.float32(0.5))
    np.testing.assert_allclose(gate_F, expected, rtol=1e-6)
    assert fired == np.count_nonzero(expected[:30:2])
