"""Angles against transformers' own."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tsconvert.runner.rope import Rope, angles

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("parameters", "rope"),
    [
        ({"rope_type": "default"}, Rope(base=5e4, dimensions=64)),
        ({"rope_type": "linear", "factor": 3.0}, Rope(base=5e4, dimensions=64, scaling="linear", factor=3.0)),
        (YARN, Rope(base=5e4, dimensions=64, scaling="yarn", factor=4.0, original_context=512)),
        (
            {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
            Rope(base=5e4, dimensions=64, scaling="yarn", factor=4.0, original_context=512, beta_fast=16, beta_slow=2),
        ),
    ],
)
def test_angles_are_those_of_transformers(parameters, rope):
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, head_dim=64, max_position_embeddings=2048,
        rope_parameters={"rope_theta": 5e4, **parameters},
    )  # fmt: skip
    module = LlamaRotaryEmbedding(config)
    cos, sin = module(torch.zeros(1), torch.arange(300)[None])
    ours_cos, ours_sin = angles(rope, 300)
    np.testing.assert_allclose(ours_cos, cos[0, :, :32], atol=3e-5)
    np.testing.assert_allclose(ours_sin, sin[0, :, :32], atol=3e-5)


def test_llama3_divides_frequencies():
    parameters = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, head_dim=64, max_position_embeddings=2048, rope_parameters=parameters
    )
    module = LlamaRotaryEmbedding(config)
    plain = 5e5 ** (-np.arange(32) / 32)
    divisors_H = (plain / module.inv_freq.numpy()).astype(np.float32)
    cos, _ = module(torch.zeros(1), torch.arange(200)[None])
    ours, _ = angles(Rope(base=5e5, dimensions=64, divisors_H=divisors_H), 200)
    np.testing.assert_allclose(ours, cos[0, :, :32], atol=3e-5)
