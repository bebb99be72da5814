"""Each small kernel against a few lines of NumPy, odd sizes included."""

import numpy as np
import pytest

from tsconvert.runner.kernels import blocks, chosen, elementwise

RNG = np.random.default_rng(11)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def at(array):
    return array.ctypes.data


@pytest.mark.parametrize("width", [1, 5, 64, 577])
def test_rms_norm(width):
    x_D, weight_D, out_D = floats(width), floats(width), np.empty(width, np.float32)
    elementwise.rms_norm(at(x_D), at(weight_D), width, 1e-5, at(out_D))
    twin = x_D / np.sqrt((x_D.astype(np.float64) ** 2).mean() + 1e-5) * weight_D
    np.testing.assert_allclose(out_D, twin, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 31, 32, 50, 100, 14336])
def test_threads_share_rows_out_in_whole_units(rows, threads):
    starts = [elementwise.share_of(rows, thread, threads, 32) for thread in range(threads + 1)]
    assert starts[0] == 0
    assert starts[-1] == rows
    assert starts == sorted(starts)
    assert all(start % 32 == 0 for start in starts[:-1])
    sizes = np.diff(starts)
    assert sizes.max() - sizes.min() <= 63


@pytest.mark.parametrize(("head_dim", "rotated"), [(16, 16), (20, 12), (6, 2)])
def test_rotation_turns_neighbouring_pairs(head_dim, rotated):
    x_HD = floats(5, head_dim)
    angle = RNG.uniform(0, 6, rotated // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    twin = x_HD.copy()
    turned = (x_HD[:, 0:rotated:2] + 1j * x_HD[:, 1:rotated:2]) * np.exp(1j * angle)
    twin[:, 0:rotated:2], twin[:, 1:rotated:2] = turned.real, turned.imag
    flat = x_HD.reshape(-1).copy()
    cut = flat.size // 4 * 2
    for first, end in ((0, cut), (cut, flat.size)):
        elementwise.rotate(at(flat), head_dim, at(cos), at(sin), rotated, first, end)
    np.testing.assert_allclose(flat.reshape(5, head_dim), twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 7, 16, 17, 100])
def test_softmax(count):
    x_P, scale = floats(count + 16) * 30, np.float32(0.3)
    twin = np.exp((x_P[:count] - x_P[:count].max()).astype(np.float64) * scale)
    total = elementwise.softmax(at(x_P), count, scale)
    np.testing.assert_allclose(x_P[:count], twin, rtol=5e-6, atol=1e-37)
    np.testing.assert_allclose(total, twin.sum(), rtol=5e-6)


@pytest.mark.parametrize(("experts", "per_token"), [(4, 2), (8, 2), (5, 5), (3, 1)])
def test_experts_are_the_largest_logits_and_their_softmax(experts, per_token):
    logits_E, choice_K, share_K = floats(experts), np.zeros(per_token, np.int64), np.zeros(per_token, np.float32)
    used_E = logits_E.copy()
    elementwise.choose_experts(at(used_E), experts, per_token, at(choice_K), at(share_K))
    best = np.argsort(-logits_E)[:per_token]
    np.testing.assert_array_equal(choice_K, best)
    np.testing.assert_allclose(share_K, np.exp(logits_E[best]) / np.exp(logits_E[best]).sum(), rtol=1e-6)


@pytest.mark.parametrize("step", [1, 3])
def test_lists_of_those_above_a_threshold(step):
    values_F = np.array([0.25, -1, 0, 3, 0.1, -0.0, np.nan, 2], np.float32)
    spaced = np.full(len(values_F) * step, 9, np.float32)
    spaced[::step] = values_F
    listed = np.zeros(8, np.int32)
    for list_them, twin in (
        (lambda: elementwise.list_above(at(spaced), step, 1, 8, np.float32(0.25), at(listed)), values_F[1:] >= 0.25),
        (lambda: elementwise.list_positive(at(spaced), step, 1, 8, at(listed)), values_F[1:] > 0),
    ):
        count = list_them()
        assert listed[:count].tolist() == (np.flatnonzero(twin) + 1).tolist()


@pytest.mark.parametrize(
    ("keep", "twin"), [(elementwise.keep_positive, lambda v: v > 0), (elementwise.keep_nonzero, lambda v: v != 0)]
)
def test_passes_drop_neurons_from_the_list(keep, twin):
    values_F = np.array([0.25, -1, 0, 3, 0.1, -0.0, np.nan, 2], np.float32)
    listed_F = np.array([0, 2, 3, 4, 5, 6, 1, 7], np.int32)
    expected = [j for j in listed_F[:6].tolist() if twin(values_F[j])]
    assert keep(at(listed_F), 6, at(values_F), 1) == len(expected)
    assert listed_F[: len(expected)].tolist() == expected


@pytest.mark.parametrize(
    ("activation", "twin"),
    [
        (elementwise.SWIGLU, lambda g, u: g / (1 + np.exp(-g)) * u),
        (elementwise.DRELU, lambda g, u: np.maximum(g, 0) * np.maximum(u, 0)),
        (elementwise.REGLU, lambda g, u: np.maximum(g, 0) * u),
    ],
)
def test_activations(activation, twin):
    gate_F, up_F, listed_F = floats(40), floats(40), np.arange(0, 40, 2, dtype=np.int32)
    expected = gate_F.copy()
    expected[:30:2] = twin(gate_F, up_F)[:30:2] * 0.5
    ours = gate_F.copy()
    fired = elementwise.activate(activation, at(listed_F), 0, 15, at(ours), at(up_F), 1, np.float32(0.5))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert fired == np.count_nonzero(expected[:30:2])


@pytest.mark.parametrize("count", [1, 16, 45])
def test_swiglu_of_a_run(count):
    gate_F, up_F = floats(50) * 20, floats(50)
    twin = gate_F.astype(np.float64)
    twin[:count] = twin[:count] / (1 + np.exp(-twin[:count])) * up_F[:count]
    elementwise.swish_all(at(gate_F), at(up_F), count)
    np.testing.assert_allclose(gate_F, twin, rtol=3e-6, atol=1e-30)


def test_tokens_of_an_expert_and_their_shares():
    choice_TK, share_TK = np.array([[0, 3], [2, 1], [3, 2]], np.int64), np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    share_TK, listed = share_TK.astype(np.float32), np.zeros(4, np.int32)
    assert chosen.choose_tokens(at(choice_TK), 2, 3, 3, at(listed)) == 2
    assert listed[:2].tolist() == [0, 2]
    assert chosen.share_for(at(choice_TK[1]), at(share_TK[1]), 2, 1) == np.float32(0.4)
    assert chosen.share_for(at(choice_TK[1]), at(share_TK[1]), 2, 3) == 0
    values_T, some = np.array([1, 9, -1, 0], np.float32), np.array([2, 0, 3], np.int32)
    assert chosen.chosen_above(at(some), 3, at(values_T), np.float32(0), at(listed)) == 2
    assert listed[:2].tolist() == [0, 3]
    assert chosen.chosen_positive(at(some), 3, at(values_T), at(listed)) == 1
    assert listed[0] == 0


@pytest.mark.parametrize("width", [256, 96, 50])
def test_each_token_adds_the_rows_that_fire_for_it(width):
    h_FT = np.zeros((64, blocks.BLOCK), np.float32)
    h_FT[:40] = floats(40, blocks.BLOCK) * (RNG.random((40, blocks.BLOCK)) < 0.2)
    h_FT[7] = 0
    panel_RC, out_TC, some = floats(64, 256), floats(6, width), np.array([0, 5, 9, 127], np.int32)
    lists, shares = np.zeros((4, 64), np.int32), np.zeros((4, 64), np.float32)
    lengths = np.zeros(4, np.int32)
    used = blocks.list_firing(at(h_FT), 40, at(some), 4, at(lists), at(shares), at(lengths))
    fires_R = (h_FT[:40, some] != 0).any(axis=1)
    assert [bool(used >> r & 1) for r in range(40)] == fires_R.tolist()
    for i, t in enumerate(some):
        ours_C = out_TC[i].copy()
        blocks.add_panel(at(panel_RC), at(lists[i]), at(shares[i]), int(lengths[i]), at(ours_C), width)
        twin_C = out_TC[i] + h_FT[:, t] @ panel_RC[:, :width]
        np.testing.assert_allclose(ours_C, twin_C, rtol=1e-5, atol=1e-5)
