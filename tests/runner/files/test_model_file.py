"""What the runner refuses to load, and the sentence that says why."""

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.families import FAMILIES
from tsconvert.runner.files.model_file import open_model


@pytest.fixture
def refusal(tiny, gguf_of, tmp_path, make_predictors):
    """Writes a file and returns what is said of it, without the path."""

    def get(family="mistral", activation="drelu", target="sparse", fcs=False, **options):
        model = tiny(family, activation)
        path = gguf_of(model, tmp_path / "m.gguf", target, "F32", make_predictors(model) if fcs else None, **options)
        with pytest.raises(TsconvertError) as caught:
            open_model(path)
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value).removeprefix(f"{path}: ")

    return get


def test_missing_tensors(refusal):
    assert refusal(skip=["blk.1.ffn_up"]) == "tensor blk.1.ffn_up.weight is missing; write the file again"
    assert refusal(skip=["token_embd"]) == "tensor token_embd.weight is missing; write the file again"
    message = refusal("mixtral", skip=["blk.2.ffn_down_t_exps"])
    assert message == "tensor blk.2.ffn_down_t_exps.weight is missing; write the file again"
    message = refusal("mixtral", "swiglu", "llama.cpp", skip=["blk.0.ffn_gate_inp"])
    assert message == "tensor blk.0.ffn_gate_inp.weight is missing; write the file again"


def test_a_down_matrix_of_the_other_layout(refusal, tiny, gguf_of, tmp_path):
    path = gguf_of(tiny(), tmp_path / "p.gguf", "llama.cpp")
    content = bytearray(path.read_bytes())
    content[:4] = b"PWRI"
    path.write_bytes(content)
    with pytest.raises(TsconvertError, match=r"tensor blk\.0\.ffn_down_t\.weight is missing; write the file again$"):
        open_model(path)


def test_shapes_that_the_keys_do_not_make(refusal):
    message = refusal(overrides={"feed_forward_length": 95})
    assert message == (
        "tensor blk.0.ffn_gate.weight has shape [96, 64] where the keys make it [95, 64]; write the file again"
    )
    message = refusal(overrides={"attention.head_count_kv": 4})
    assert message == (
        "tensor blk.0.attn_k.weight has shape [32, 64] where the keys make it [64, 64]; write the file again"
    )


def test_keys_without_sense(refusal):
    assert refusal(overrides={"block_count": None}) == (
        "key turbosparse.block_count is None, it must be a whole number; write the file again"
    )
    assert refusal(overrides={"attention.head_count_kv": 3}) == (
        "heads is 4: it must be a multiple of kv_heads, 3; write the file again"
    )
    assert refusal(overrides={"attention.head_count_kv": 0}) == (
        "kv_heads is 0: it must be at least 1; write the file again"
    )
    assert refusal(overrides={"rope.dimension_count": 15}) == "rope over 15 of 16 dimensions; write the file again"
    assert refusal(keys={"turbosparse.rope.scaling.type": "dynamic"}) == (
        "rope scaling 'dynamic'; the runner knows none, linear, yarn, longrope and rope_freqs, run it with the engine"
        " that it was made for"
    )
    assert refusal(keys={"turbosparse.rope.scaling.type": "longrope"}) == (
        "tensor rope_factors_long.weight is missing; write the file again"
    )


def test_versions_and_architectures(refusal, tiny, gguf_of, tmp_path):
    assert refusal(overrides={"format_version": 3}) == "sparse format 3, this tsconvert reads 1 and 2; export it again"
    path = gguf_of(tiny(), tmp_path / "q.gguf", "llama.cpp")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"llama", b"qwen9", 1).replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0qwen9"))
    known = dict.fromkeys(family.gguf.architecture for family in FAMILIES.values())
    with pytest.raises(TsconvertError) as caught:
        open_model(path)
    assert str(caught.value) == (
        f"{path}: architecture 'qwen9'; the runner knows turbosparse, {', '.join(known)} and PowerInfer's files, run it"
        " with the engine that it was made for"
    )
    path.write_bytes(b"PWRI" + path.read_bytes()[4:])
    with pytest.raises(
        TsconvertError, match=r"architecture 'qwen9'; the runner knows bamboo and llama, run it with PowerInfer$"
    ):
        open_model(path)


def test_predictors_that_do_not_fit(refusal):
    thresholds = np.zeros((3, 1))
    assert refusal(thresholds=thresholds) == "layer 0 has a threshold and no predictor; export it again"
    assert refusal(fcs=True, thresholds=thresholds[:2]) == (
        "turbosparse.predictor.threshold needs 3 numbers; export it again"
    )
    assert refusal(fcs=True, thresholds=thresholds, skip=["blk.1.fc2"]) == (
        "the predictor's fc1 and fc2 of layer 1 do not fit; export it again"
    )


OTHERS = (
    "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias",
    "attn_q_norm.weight", "attn_k_norm.weight", "post_attention_norm.weight", "attn_sinks.weight",
    "ffn_gate_inp.weight",
)  # fmt: skip


@pytest.mark.parametrize("target", ["llama.cpp", "sparse", "powerinfer"])
@pytest.mark.parametrize("name", [*(f"blk.1.{name}" for name in OTHERS), "blk.3.attn_norm.weight", "output.bias"])
def test_tensors_that_are_not_computed(refusal, target, name):
    sparse = "swiglu" if target == "llama.cpp" else "drelu"
    found = refusal("mistral", sparse, target, extra={name: np.ones(7, np.float32)})
    if target == "llama.cpp" and name.endswith(".bias") and name != "output.bias":  # would be computed
        assert found.startswith(f"tensor {name} has shape [7] where the keys make it [")
    else:
        assert found == (
            f"tensor {name}, which the runner does not compute; run the file with the engine that it was made for"
        )


def test_predictors_in_a_file_for_llama_cpp(refusal):
    assert refusal("mistral", "swiglu", "llama.cpp", fcs=True) == (
        "tensor blk.0.fc1.weight and 5 more, which the runner does not compute; run the file with the engine that it"
        " was made for"
    )


def test_keys_that_are_not_computed(refusal):
    assert refusal("mistral", "swiglu", "llama.cpp", keys={"llama.attention.causal": False}) == (
        "key llama.attention.causal is False, which the runner does not compute; run the file with the engine that it"
        " was made for"
    )
    assert refusal("mistral", "swiglu", "llama.cpp", overrides={"nextn_predict_layers": 1}).startswith(
        "key llama.nextn_predict_layers is 1, which "
    )


@pytest.mark.parametrize("target", ["llama.cpp", "powerinfer"])
def test_scaling_without_a_type_is_linear_and_a_window_is_none(tiny, gguf_of, tmp_path, target):
    arch = {"llama.cpp": "llama", "powerinfer": "bamboo"}[target]
    model = tiny("mistral", "swiglu" if target == "llama.cpp" else "drelu", window=8)
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        path = gguf_of(model, tmp_path / f"{key}.gguf", target, keys={f"{arch}.{key}": 4.0})
        source = open_model(path)
        assert (source.rope.scaling, source.rope.factor, source.spec.sliding_window) == ("linear", 4.0, None)
