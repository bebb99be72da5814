import json
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.families import FAMILIES
from tsconvert.model.spec import ModelSpec, read_config, spec_of

MISTRAL_7B = {
    "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
WHERE = Path("m/config.json")


def test_mistral_7b_has_7_24_billion_parameters():
    spec = spec_of(MISTRAL_7B, WHERE)
    assert spec.parameters == 7_241_732_096
    assert (spec.family, spec.activation, spec.head_dim, spec.sliding_window) == ("mistral", "swiglu", 128, 4096)
    assert not spec.sparse


def test_mixtral_8x7b_has_46_7_billion_parameters():
    config = MISTRAL_7B | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    assert spec_of(config, WHERE).parameters == 46_702_792_704


def test_both_spellings_of_rope_are_read():
    old = spec_of(MISTRAL_7B | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, WHERE)
    new_config = {k: v for k, v in MISTRAL_7B.items() if k != "rope_theta"}
    new_config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    new = spec_of(new_config, WHERE)
    assert old.rope_theta == new.rope_theta == 5e5
    assert old.rope_scaling is not None
    assert new.rope_scaling is not None
    assert old.rope_scaling["rope_type"] == new.rope_scaling["rope_type"] == "linear"


def test_bamboo_is_a_drelu_mistral():
    spec = spec_of(MISTRAL_7B | {"model_type": "bamboo", "hidden_act": "relu"}, WHERE)
    assert (spec.family, spec.activation) == ("mistral", "drelu")


def test_turbosparse_mixtral_under_its_bases_model_type():
    moe = MISTRAL_7B | {"model_type": "mixtral", "hidden_act": "relu", "num_local_experts": 8}
    for marks in ({"architectures": ["TurboSparseMixtralForCausalLM"]}, {"auto_map": {"AutoModel": "m.BambooModel"}}):
        assert spec_of(moe | marks, WHERE).activation == "drelu"
    with pytest.raises(TsconvertError, match="hidden_act is 'relu'"):
        spec_of(moe, WHERE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model_type": "qwen2_moe"},
            (
                f"m/config.json: model_type is 'qwen2_moe'; tsconvert converts {', '.join(FAMILIES)}. The nearest is"
                " qwen3_moe: a model that differs from it by names and numbers alone needs one file like"
                " model/families/qwen3_moe.py, which CONTRIBUTING.md describes; or choose a model of those"
            ),
        ),
        (
            {"hidden_act": "gelu"},
            "m/config.json: hidden_act is 'gelu'; tsconvert replaces SwiGLU, so the model must have hidden_act 'silu'",
        ),
        (
            {"attention_bias": True},
            (
                "m/config.json: attention_bias is True; it changes what the model computes and tsconvert does not"
                " cover it, choose a model where it is False"
            ),
        ),
        (
            {"model_type": "gpt_oss"},
            (
                "m/config.json: model_type is 'gpt_oss'; its attention has sinks and its experts are clamped and"
                " biased, which tsconvert does not cover, so choose another model"
            ),
        ),
        (
            {"quantization_config": {"quant_method": "awq"}},
            "m/config.json: the weights are quantized (awq); convert the unquantized checkpoint",
        ),
        ({"hidden_size": "big"}, "m/config.json: hidden_size is 'big'; it must be a whole number of at least 1"),
        ({"num_hidden_layers": 0}, "m/config.json: num_hidden_layers is 0; it must be a whole number of at least 1"),
        ({"num_key_value_heads": 5}, "m/config.json: heads is 32: it must be a multiple of kv_heads, 5"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            (
                "m/config.json: rope_type is 'longrope'; tsconvert covers default, linear, llama3 and yarn, choose such"
                " a model"
            ),
        ),
    ],
)
def test_what_is_not_covered_is_refused_by_field(change: dict, sentence: str):
    with pytest.raises(TsconvertError) as caught:
        spec_of(MISTRAL_7B | change, WHERE)
    assert str(caught.value) == sentence


def test_a_config_that_is_no_json_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TsconvertError, match=r"config\.json: not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(TsconvertError, match=r"config\.json: not a JSON object"):
        read_config(tmp_path)


def test_an_unknown_activation_is_refused():
    fields = {"family": "mistral", "layers": 1, "width": 8, "neurons": 8, "heads": 1, "kv_heads": 1, "head_dim": 8}
    with pytest.raises(TsconvertError, match="activation is 'gelu'"):
        ModelSpec(**fields, activation="gelu", vocab=8, context=8, norm_eps=1e-5, rope_theta=1e4)
