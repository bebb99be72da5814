"""Experts of a token and tokens of an expert, against NumPy."""

import numpy as np
import pytest

from tsconvert.runner.kernels.ffn import routing

RNG = np.random.default_rng(11)


@pytest.mark.parametrize(("experts", "per_token"), [(4, 2), (8, 2), (5, 5), (3, 1)])
@pytest.mark.parametrize("normalized", [True, False])
def test_experts_are_the_largest_logits_and_their_softmax(params_of, experts, per_token, normalized):
    logits_E = RNG.standard_normal(experts).astype(np.float32)
    choice_K, share_K = np.zeros(per_token, np.int64), np.zeros(per_token, np.float32)
    used_E = logits_E.copy()
    params = params_of(experts=experts, experts_per_token=per_token, router_normalized=normalized)
    routing.choose_experts(params, used_E.ctypes.data, choice_K.ctypes.data, share_K.ctypes.data)
    best = np.argsort(-logits_E)[:per_token]
    np.testing.assert_array_equal(choice_K, best)
    np.testing.assert_allclose(
        share_K, np.exp(logits_E[best]) / np.exp(logits_E[best] if normalized else logits_E).sum(), rtol=1e-6
    )


def test_tokens_of_an_expert_and_their_shares(params_of):
    choice_TK = np.array([[0, 3], [2, 1], [3, 2]], np.int64)
    share_TK = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]], np.float32)
    listed_NT = np.zeros((1, 4), np.int32)
    params = params_of(tokens=3, experts_per_token=2, choice=choice_TK, share=share_TK, chosen_tokens=listed_NT)
    assert routing.choose_tokens(params, 0, 3) == 2
    assert listed_NT[0, :2].tolist() == [0, 2]
    assert routing.share_for(params, 1, 1) == np.float32(0.4)
    assert routing.share_for(params, 1, 3) == 0
