"""Files of the targets sparse and llama.cpp, read back with gguf-py and compared with their sources."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf import ggml
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.predictors.folder import load_predictors
from tsconvert.quant.export import ExportConfig, export_unverified

Make = Callable[..., Path]
HEADS, KV_HEADS = 4, 2


def export(tmp_path: Path, model: Path, **options) -> Path:
    out = tmp_path / "model.gguf"
    export_unverified(ExportConfig(model=model, out=out, **options))
    return out


def read(path: Path) -> tuple[dict, dict[str, np.ndarray], dict[str, str]]:
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return keys, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


def from_ggml_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    size = len(rows) // heads
    order = [head * size + (i // (size // 2)) + 2 * (i % (size // 2)) for head in range(heads) for i in range(size)]
    return rows[order]


def expected(model: Path, tensors: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each tensor of the file: what was decoded, in Hugging Face's layout, and its source."""
    hf = load_file(model / "model.safetensors")
    pairs = {}
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    layer_names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_v": "self_attn.v_proj",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "ffn_down_t": "mlp.down_proj",
        "ffn_gate_inp": "block_sparse_moe.gate",
    }  # fmt: skip
    experts = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2", "ffn_down_t_exps": "w2"}
    for name, values in tensors.items():
        parts = name.split(".")
        if parts[0] != "blk":
            pairs[name] = (values, hf[f"{names[parts[0]]}.weight"])
            continue
        layer, kind = f"model.layers.{parts[1]}.", parts[2]
        if kind in experts:
            stack = [hf[f"{layer}block_sparse_moe.experts.{e}.{experts[kind]}.weight"] for e in range(len(values))]
            pairs[name] = (values.swapaxes(1, 2) if "_t" in kind else values, np.stack(stack))
        elif kind in layer_names:
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(kind)
            values = from_ggml_rope(values, heads) if heads else values.T if kind == "ffn_down_t" else values
            pairs[name] = (values, hf[f"{layer}{layer_names[kind]}.weight"])
    return pairs


def worst(type_name: str, stored: np.ndarray, source: np.ndarray) -> bool:
    """Whether every value is as close to its source as the type allows; blocks are along the stored rows."""
    if type_name in ("F32", "F16", "BF16"):
        bits = {"F32": 24, "F16": 11, "BF16": 8}[type_name]
        return bool((np.abs(stored - source) <= np.maximum(np.abs(source) * 2.0**-bits, 2.0**-25)).all())
    blocks, wanted = stored.reshape(-1, 32), source.reshape(-1, 32)
    peak = np.abs(wanted).max(axis=1, keepdims=True)
    step = peak / {"Q8_0": 127, "Q4_0": 8}[type_name]
    share = {"Q8_0": 0.5, "Q4_0": 1.0}[type_name]  # Q4_0 clips the value opposite to the peak
    return bool((np.abs(blocks - wanted) <= step * share * 1.01 + peak * 2.0**-10).all())


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("target", ["sparse", "llama.cpp"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_every_tensor_is_its_source(make_checkpoint: Make, tmp_path: Path, family: str, target: str, type_name: str):
    model = make_checkpoint(family)
    _, tensors, types = read(export(tmp_path, model, target=target, type_name=type_name, pure=True))
    hf = load_file(model / "model.safetensors")
    pairs = expected(model, tensors)
    assert sum(source.size for _, source in pairs.values()) == sum(tensor.size for tensor in hf.values())
    for name, (values, source) in pairs.items():
        if type_name == "F32":
            assert np.array_equal(values, source), name
        stored = (values.swapaxes(-1, -2), source.swapaxes(-1, -2)) if "_t" in name else (values, source)
        assert worst(types[name], *stored), name
        f32 = source.ndim == 1 or "ffn_gate_inp" in name
        assert types[name] == ("F32" if f32 else type_name)


def test_a_bf16_checkpoint_is_exact_in_bf16_and_in_f32(make_checkpoint: Make, tmp_path: Path):
    import torch

    model = make_checkpoint("mistral", dtype=torch.bfloat16)
    checkpoint = open_checkpoint(model)
    for type_name in ("BF16", "F32"):
        out = export(tmp_path / type_name, model, type_name=type_name)
        tensor = GgufFile(out).tensors["blk.1.ffn_up.weight"]
        source = next(checkpoint.array(p) for p in checkpoint.places if (p.role, p.layer) == ("ffn_up", 1))
        assert np.array_equal(tensor.to_float32(), source)


def test_the_keys_of_the_sparse_dialect(drelu: Path, make_predictors: Make, tmp_path: Path):
    predictors = make_predictors(drelu, [[24], [0]], threshold=0.5)
    file = GgufFile(export(tmp_path, drelu, predictors=predictors))
    assert file.magic == "GGUF"
    keys = {k.removeprefix("turbosparse."): v for k, v in file.metadata.items() if k.startswith("turbosparse.")}
    thresholds = keys.pop("predictor.threshold")
    assert thresholds[0] == 0.5
    assert math.isnan(thresholds[1])
    assert keys.pop("attention.layer_norm_rms_epsilon") == np.float32(1e-6)
    assert keys == {
        "context_length": 256, "embedding_length": 64, "block_count": 2, "feed_forward_length": 1024,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "attention.value_length": 16, "rope.freq_base": 10000.0, "rope.dimension_count": 16, "vocab_size": 4096,
        "format_version": 1, "activation": "drelu", "source_fingerprint": open_checkpoint(drelu).fingerprint,
        "predictor.rank": [24, 0],
    }  # fmt: skip
    assert file.metadata["general.architecture"] == "turbosparse"
    tokenizer_json = (drelu / "tokenizer.json").read_text(encoding="utf-8")
    assert file.metadata["tokenizer.huggingface.json"] == tokenizer_json
    assert "blk.1.fc1.weight" not in file.tensors


def test_predictors_are_the_folders_on_the_normed_input(drelu: Path, make_predictors: Make, tmp_path: Path):
    folder = make_predictors(drelu)
    file = GgufFile(export(tmp_path, drelu, predictors=folder, type_name="Q4_0"))
    ffns = load_predictors(folder).ffns
    for layer in range(2):
        fc1, fc2 = (file.tensors[f"blk.{layer}.{part}.weight"] for part in ("fc1", "fc2"))
        assert (fc1.type_name, fc2.type_name) == ("F16", "F16")
        assert np.array_equal(fc1.to_float32(), ffns[layer][0].fc1_RD)
        assert np.array_equal(fc2.to_float32(), ffns[layer][0].fc2_FR)


def test_predictors_are_stored_as_they_were_trained_to_be(drelu: Path, make_predictors: Make, tmp_path: Path):
    folder = make_predictors(drelu)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"report": config["report"] | {"stored_as": "Q8_0"}}))
    for name, asked, stored in (("trained", {}, "Q8_0"), ("asked", {"predictor_type": "Q4_0"}, "Q4_0")):
        file = GgufFile(export(tmp_path / name, drelu, predictors=folder, **asked))
        assert file.tensors["blk.0.fc1.weight"].type_name == stored
    powerinfer = GgufFile(export(tmp_path / "powerinfer", drelu, predictors=folder, target="powerinfer"))
    assert powerinfer.tensors["blk.0.fc1.weight"].type_name == "F16"


def test_experts_predictors_are_stacked_and_padded(sparse_moe: Path, make_predictors: Make, tmp_path: Path):
    ranks = [[8, 0, 16, 4], [0, 0, 0, 0]]
    folder = make_predictors(sparse_moe, ranks, threshold=-0.25)
    out = tmp_path / "model.gguf"
    report = export_unverified(ExportConfig(model=sparse_moe, out=out, predictors=folder))
    file, ffns = GgufFile(out), load_predictors(folder).ffns
    fc1_ERD = file.tensors["blk.0.fc1_exps.weight"].to_float32()
    fc2_EFR = file.tensors["blk.0.fc2_exps.weight"].to_float32()
    assert (fc1_ERD.shape, fc2_EFR.shape) == ((4, 16, 64), (4, 128, 16))
    x_TD = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)
    for expert, rank in enumerate(ranks[0]):
        padded_TF = np.maximum(x_TD @ fc1_ERD[expert].T, 0) @ fc2_EFR[expert].T
        if rank:
            np.testing.assert_allclose(padded_TF, ffns[0][expert].logits(x_TD), atol=1e-5)
        else:
            assert not fc1_ERD[expert].any()
    assert "blk.1.fc1_exps.weight" not in file.tensors
    assert file.metadata["turbosparse.predictor.rank"] == [8, 0, 16, 4, 0, 0, 0, 0]
    thresholds = file.metadata["turbosparse.predictor.threshold"]
    assert [None if math.isnan(t) else t for t in thresholds] == [-0.25, None, -0.25, -0.25] + [None] * 4
    assert report.notes == ["5 of 8 FFNs have no predictor and run in exact mode"]
    assert report.predictors == 3


def with_predictors_inside(model: Path, folder: Path, out: Path) -> Path:
    """As TurboSparse's releases: predictors in the checkpoint, on the residual before the norm."""
    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    for layer, (predictor,) in enumerate(load_predictors(folder).ffns):
        name = f"model.layers.{layer}.mlp.predictor."
        tensors[name + "fc1.weight"], tensors[name + "fc2.weight"] = predictor.fc1_RD, predictor.fc2_FR
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_predictors_inside_a_checkpoint_keep_their_masks(drelu: Path, make_predictors: Make, tmp_path: Path):
    model = with_predictors_inside(drelu, make_predictors(drelu), tmp_path / "turbosparse")
    inside = load_file(model / "model.safetensors")
    sparse = GgufFile(export(tmp_path / "sparse", model, predictor_type="F32"))
    powerinfer = GgufFile(export(tmp_path / "powerinfer", model, target="powerinfer"))
    assert sparse.metadata["turbosparse.predictor.threshold"] == [0.0, 0.0]
    x_TD = np.random.default_rng(2).normal(size=(300, 64))
    for layer in range(2):
        fc1_RD = inside[f"model.layers.{layer}.mlp.predictor.fc1.weight"].astype(np.float64)
        norm_D = inside[f"model.layers.{layer}.post_attention_layernorm.weight"].astype(np.float64)
        moved_RD = sparse.tensors[f"blk.{layer}.fc1.weight"].to_float32()
        np.testing.assert_allclose((x_TD * norm_D) @ moved_RD.T, x_TD @ fc1_RD.T, atol=1e-5)
        kept_RD = powerinfer.tensors[f"blk.{layer}.fc1.weight"].to_float32()
        assert np.array_equal(kept_RD, fc1_RD)


@pytest.mark.parametrize("target", ["sparse", "llama.cpp"])
def test_llama3_rope_scaling_is_a_tensor(make_checkpoint: Make, tmp_path: Path, target: str):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    model = make_checkpoint("llama", rope_parameters=rope)
    file = GgufFile(export(tmp_path, model, target=target))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig.from_pretrained(model), device="cpu")
    plain = 500000.0 ** (-np.arange(0, 16, 2) / 16)
    divisors = file.tensors["rope_freqs.weight"].to_float32()
    np.testing.assert_allclose(plain / divisors, scaled.numpy(), rtol=1e-5)
    assert len(set(divisors)) > 2
    assert not [key for key in file.metadata if "rope.scaling" in key]


def test_yarn_and_linear_scaling_are_keys(make_checkpoint: Make, tmp_path: Path):
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
    }
    file = GgufFile(export(tmp_path / "yarn", make_checkpoint("mistral", rope_parameters=yarn), target="sparse"))
    scaling = {k.removeprefix("turbosparse.rope.scaling."): v for k, v in file.metadata.items() if "rope.scaling" in k}
    assert scaling == {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 16.0}
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    file = GgufFile(export(tmp_path / "linear", make_checkpoint("mistral", rope_parameters=linear)))
    assert file.metadata["llama.rope.scaling.type"] == "linear"
    assert file.metadata["llama.rope.scaling.factor"] == 2.0


def test_a_sliding_window_is_kept_where_the_engine_has_one(make_checkpoint: Make, tmp_path: Path):
    model = make_checkpoint("mistral", sliding_window=128)
    sparse = GgufFile(export(tmp_path / "sparse", model, target="sparse"))
    assert sparse.metadata["turbosparse.attention.sliding_window"] == 128
    assert sparse.metadata["turbosparse.context_length"] == 256
    llama = GgufFile(export(tmp_path / "llama", model))
    assert llama.metadata["llama.context_length"] == 128


def test_a_tied_head_is_left_out(make_checkpoint: Make, tmp_path: Path):
    model = make_checkpoint("mistral", tie_word_embeddings=True)
    for target in ("sparse", "llama.cpp"):
        assert "output.weight" not in GgufFile(export(tmp_path / target, model, target=target)).tensors


def test_types_by_name_the_first_pattern_wins(dense: Path, tmp_path: Path):
    patterns = (("blk.0.*", "Q8_0"), (r"ffn_(up|gate)", "Q4_0"), ("*norm*", "F16"))
    with pytest.raises(Exception, match="fits none of this file's matrices"):
        export(tmp_path, dense, tensor_types=patterns)
    _, _, types = read(export(tmp_path, dense, tensor_types=patterns[:2]))
    assert types["blk.0.ffn_up.weight"] == types["blk.0.attn_q.weight"] == "Q8_0"
    assert types["blk.1.ffn_up.weight"] == types["blk.1.ffn_gate.weight"] == "Q4_0"
    assert types["blk.1.attn_q.weight"] == types["token_embd.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_rows_that_do_not_fill_blocks_fall_back_to_f16(make_checkpoint: Make, tmp_path: Path):
    model = make_checkpoint("llama", hidden_size=48, head_dim=16, intermediate_size=96)
    out = tmp_path / "model.gguf"
    report = export_unverified(ExportConfig(model=model, out=out, type_name="Q4_0", pure=True))
    assert report.notes[-1] == (
        "12 tensors with rows of 48 are stored as F16, because Q4_0 stores 32 weights together (token_embd.weight, ...)"
    )
    _, tensors, types = read(out)
    assert types["blk.0.ffn_up.weight"] == "F16"
    assert types["blk.0.ffn_down.weight"] == types["blk.0.attn_output.weight"] == "Q4_0"
    assert all(worst(types[name], *pair) for name, pair in expected(model, tensors).items())


def test_metadata_is_added_with_its_type(dense: Path, tmp_path: Path):
    pairs = (("general.name", "My model"), ("general.license", "mit"), ("my.count", "u32:5"), ("my.flag", "bool:true"))
    file = GgufFile(export(tmp_path, dense, metadata=pairs))
    assert {key: file.metadata[key] for key, _ in pairs} == {
        "general.name": "My model", "general.license": "mit", "my.count": 5, "my.flag": True,
    }  # fmt: skip


def test_a_dry_run_says_the_size_and_writes_nothing(dense: Path, tmp_path: Path):
    out = tmp_path / "model.gguf"
    config = {"model": dense, "out": out, "type_name": "Q8_0"}
    plan = export_unverified(ExportConfig(**config, dry_run=True))
    assert not list(tmp_path.iterdir())
    report = export_unverified(ExportConfig(**config))
    assert plan.size_bytes == report.size_bytes == out.stat().st_size
    assert plan.types == report.types
    assert sum(plan.types.values()) == sum(tensor.size_bytes for tensor in GgufFile(out).tensors.values())
    assert json.loads(json.dumps(report.to_json()))["tensors"]["blk.0.ffn_up.weight"] == "Q8_0"
    assert str(report).startswith(f"wrote {out}: ")
    assert str(plan).startswith(f"would write {out}: ")


def test_memory_holds_one_tensor_not_the_file(make_checkpoint: Make, tmp_path: Path):
    import tracemalloc

    model = make_checkpoint("llama", hidden_size=256, intermediate_size=2048, num_hidden_layers=6, vocab_size=8192)
    export(tmp_path / "warm", model, type_name="Q8_0")
    tracemalloc.start()
    export(tmp_path / "measured", model, type_name="F16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    embedding_bytes = 8192 * 256 * 4
    assert (model / "model.safetensors").stat().st_size > 7 * embedding_bytes
    assert peak < 2.5 * embedding_bytes + 8e6  # beside the tokenizer's objects


def test_ggml_knows_the_types_by_gguf_pys_ids():
    for name in ggml.weight_types():
        assert gguf.GGMLQuantizationType[name] == ggml.TYPES[name].id


def test_every_key_and_tensor_stands_in_the_specification(
    make_sparse: Make, drelu: Path, sparse_moe: Path, make_predictors: Make, tmp_path: Path
):
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    yarn |= {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 2.0}
    scaled = make_sparse("mistral", sliding_window=128, rope_parameters=yarn)
    files = [
        export(tmp_path / "dense", drelu, predictors=make_predictors(drelu)),
        export(tmp_path / "scaled", scaled),
    ]
    shutil.rmtree(tmp_path / "predictors")
    files.append(export(tmp_path / "moe", sparse_moe, predictors=make_predictors(sparse_moe)))
    for file in map(GgufFile, files):
        for key in file.metadata:
            assert not key.startswith("turbosparse.") or f"`{key.removeprefix('turbosparse.')}`" in page, key
        for name in file.tensors:
            bare = name.removesuffix(".weight").replace("blk.0.", "blk.N.").replace("blk.1.", "blk.N.")
            assert f"`{bare}`" in page, name
