"""The powerinfer file against what PowerInfer's source reads, by a parser that shares no code with the package."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tsconvert.quant.export import ExportConfig, ExportReport, export_unverified

Make = Callable[..., Path]
U32, F32, BOOL, STR, ARR, I32 = 4, 6, 7, 8, 9, 5
TYPE_F32, TYPE_F16, TYPE_Q4_0, TYPE_Q8_0 = 0, 1, 2, 8
D, F, R, V, LAYERS, HEADS, KV_HEADS = 64, 1024, 24, 4096, 2, 4, 2
TYPES_OF_KEYS = {
    "general.architecture": STR, "general.type": STR, "general.name": STR, "general.size_label": STR,
    "general.file_type": U32, "general.quantization_version": U32, "general.tags": (ARR, STR),
    "general.base_model.count": U32, "general.base_model.0.name": STR,
    "tsconvert.version": STR, "tsconvert.source_fingerprint": STR, "tsconvert.recovery": STR,
    "bamboo.context_length": U32, "bamboo.embedding_length": U32, "bamboo.block_count": U32,
    "bamboo.feed_forward_length": U32, "bamboo.attention.head_count": U32, "bamboo.attention.head_count_kv": U32,
    "bamboo.rope.dimension_count": U32, "bamboo.attention.layer_norm_rms_epsilon": F32, "bamboo.rope.freq_base": F32,
    "powerinfer.sparse_threshold": F32,
    "tokenizer.ggml.model": STR, "tokenizer.ggml.pre": STR, "tokenizer.ggml.tokens": (ARR, STR),
    "tokenizer.ggml.token_type": (ARR, I32), "tokenizer.ggml.scores": (ARR, F32),
    "tokenizer.ggml.bos_token_id": U32, "tokenizer.ggml.eos_token_id": U32, "tokenizer.ggml.unknown_token_id": U32,
    "tokenizer.ggml.add_bos_token": BOOL, "tokenizer.ggml.add_eos_token": BOOL, "tokenizer.ggml.add_space_prefix": BOOL,
}  # fmt: skip


@dataclass
class Parsed:
    """What lies in the file: key -> (type, value), tensor -> (ne, type id, offset, bytes)."""

    magic: bytes
    version: int
    keys: dict
    tensors: dict
    raw: bytes


def parse(path: Path) -> Parsed:
    raw = path.read_bytes()
    at = 0

    def take(code: str):
        nonlocal at
        value = struct.unpack_from("<" + code, raw, at)
        at += struct.calcsize("<" + code)
        return value if len(value) > 1 else value[0]

    def string() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return raw[at - size : at].decode("utf-8")

    def value(kind: int):
        return string() if kind == STR else take({U32: "I", F32: "f", BOOL: "?", I32: "i"}[kind])

    magic, version = raw[:4], struct.unpack_from("<I", raw, 4)[0]
    at = 8
    tensor_count, key_count = take("QQ")
    keys = {}
    for _ in range(key_count):
        key, kind = string(), take("I")
        if kind == ARR:
            kind, count = take("IQ")
            keys[key] = ((ARR, kind), [value(kind) for _ in range(count)])
        else:
            keys[key] = (kind, value(kind))
    infos = []
    for _ in range(tensor_count):
        name, dimensions = string(), take("I")
        ne = tuple(take("Q") for _ in range(dimensions))
        infos.append((name, ne, *take("IQ")))
    start = -(-at // 32) * 32
    assert raw[at:start] == bytes(start - at)
    tensors = {}
    for name, ne, kind, offset in infos:
        count = int(np.prod(ne))
        size = {TYPE_F32: 4 * count, TYPE_F16: 2 * count, TYPE_Q4_0: count // 32 * 18, TYPE_Q8_0: count // 32 * 34}[
            kind
        ]
        tensors[name] = (ne, kind, offset, raw[start + offset : start + offset + size])
    end = max(offset + len(data) for _, _, offset, data in tensors.values())
    assert len(raw) == start + -(-end // 32) * 32
    return Parsed(magic, version, keys, tensors, raw)


def f16(file: Parsed, name: str) -> np.ndarray:
    ne, kind, _, data = file.tensors[name]
    return np.frombuffer(data, {TYPE_F32: "<f4", TYPE_F16: "<f2"}[kind]).reshape(ne[::-1]).astype(np.float32)


@pytest.fixture
def export(drelu: Path, make_predictors: Make, tmp_path: Path):
    def run(model: Path = drelu, threshold: float = 0.0, **options) -> tuple[Parsed, ExportReport, Path]:
        predictors = make_predictors(model, R, threshold)
        out = tmp_path / "model.gguf"
        report = export_unverified(
            ExportConfig(model=model, out=out, target="powerinfer", predictors=predictors, **options)
        )
        return parse(out), report, predictors

    return run


def test_container_and_keys(export, drelu: Path):
    file, report, _ = export()
    assert (file.magic, file.version) == (b"PWRI", 3)
    assert {key: kind for key, (kind, _) in file.keys.items()} == TYPES_OF_KEYS
    values = {key: value for key, (_, value) in file.keys.items()}
    expected = {
        "general.architecture": "bamboo", "general.type": "model", "general.name": "model",
        "general.size_label": "942K", "general.file_type": 1, "general.quantization_version": 2,
        "bamboo.context_length": 256, "bamboo.embedding_length": D, "bamboo.block_count": LAYERS,
        "bamboo.feed_forward_length": F, "bamboo.attention.head_count": HEADS,
        "bamboo.attention.head_count_kv": KV_HEADS, "bamboo.rope.dimension_count": D // HEADS,
        "bamboo.attention.layer_norm_rms_epsilon": np.float32(1e-6),
        "bamboo.rope.freq_base": 10000.0, "powerinfer.sparse_threshold": 0.0,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    tokens = values["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == V == len(values["tokenizer.ggml.scores"])
    assert all(tokens)
    vocab = json.loads((drelu / "tokenizer.json").read_text())["model"]["vocab"]
    assert all(tokens[index] == token for token, index in vocab.items())
    assert tokens[13] == "<0x0A>"
    assert report.architecture == "bamboo"


def test_tensors_their_shapes_types_and_places(export):
    file, _, _ = export()
    kv = D // HEADS * KV_HEADS
    expected = {"token_embd": ((D, V), TYPE_F16), "output": ((D, V), TYPE_F16), "output_norm": ((D,), TYPE_F32)}
    for layer in range(LAYERS):
        expected |= {
            f"blk.{layer}.attn_norm": ((D,), TYPE_F32), f"blk.{layer}.ffn_norm": ((D,), TYPE_F32),
            f"blk.{layer}.attn_q": ((D, D), TYPE_F16), f"blk.{layer}.attn_output": ((D, D), TYPE_F16),
            f"blk.{layer}.attn_k": ((D, kv), TYPE_F16), f"blk.{layer}.attn_v": ((D, kv), TYPE_F16),
            f"blk.{layer}.ffn_gate": ((D, F), TYPE_F16), f"blk.{layer}.ffn_up": ((D, F), TYPE_F16),
            f"blk.{layer}.ffn_down_t": ((D, F), TYPE_F16),
            f"blk.{layer}.fc1": ((D, R), TYPE_F16), f"blk.{layer}.fc2": ((R, F), TYPE_F16),
        }  # fmt: skip
    assert {name: (ne, kind) for name, (ne, kind, _, _) in file.tensors.items()} == {
        f"{name}.weight": what for name, what in expected.items()
    }
    at = 0
    for _, _, offset, data in file.tensors.values():
        assert offset == at
        at = -(-(offset + len(data)) // 32) * 32


def test_the_weights_are_where_powerinfer_takes_them(export, drelu: Path):
    file, _, _ = export()
    source = load_file(drelu / "model.safetensors")
    layer = "model.layers.1."
    down_DF = source[layer + "mlp.down_proj.weight"].astype(np.float16).astype(np.float32)
    assert np.array_equal(f16(file, "blk.1.ffn_down_t.weight"), down_DF.T)
    assert np.array_equal(f16(file, "blk.1.ffn_norm.weight"), source[layer + "post_attention_layernorm.weight"])
    for name, heads in (("q", HEADS), ("k", KV_HEADS)):
        hf = source[f"{layer}self_attn.{name}_proj.weight"].astype(np.float16).astype(np.float32)
        ggml, half = f16(file, f"blk.1.attn_{name}.weight"), D // HEADS // 2
        for head in range(heads):
            for pair in range(half):
                first = head * 2 * half
                assert np.array_equal(ggml[first + 2 * pair], hf[first + pair])
                assert np.array_equal(ggml[first + 2 * pair + 1], hf[first + half + pair])


def test_the_predictor_on_the_residual_has_the_mask_of_the_one_on_the_normed_input(export):
    file, _, folder = export()
    rng = np.random.default_rng(0)
    for layer in range(LAYERS):
        residual_TD = rng.normal(size=(500, D)) * rng.lognormal(size=(500, 1), sigma=2)
        norm_D = f16(file, f"blk.{layer}.ffn_norm.weight").astype(np.float64)
        normed_TD = residual_TD / np.sqrt((residual_TD**2).mean(axis=1, keepdims=True) + 1e-6) * norm_D

        def logits(x_TD, fc1_RD, fc2_FR):
            return np.maximum(x_TD @ fc1_RD.T.astype(np.float64), 0) @ fc2_FR.T.astype(np.float64)

        predictors = load_file(folder / f"layer-{layer:05}.safetensors")
        prefix = "experts.0."
        trained_TF = logits(normed_TD, predictors[prefix + "fc1.weight"], predictors[prefix + "fc2.weight"])
        engine_TF = logits(residual_TD, f16(file, f"blk.{layer}.fc1.weight"), f16(file, f"blk.{layer}.fc2.weight"))
        assert np.array_equal(engine_TF >= 0, trained_TF >= 0)
        assert 0.1 < (engine_TF >= 0).mean() < 0.9


def test_q4_0_keeps_the_predictors_f16(export):
    file, _, _ = export(type_name="Q4_0")
    kinds = {name.split(".")[-2]: kind for name, (_, kind, _, _) in file.tensors.items()}
    norms = {"attn_norm", "ffn_norm", "output_norm"}
    assert {name for name, kind in kinds.items() if kind == TYPE_F32} == norms
    assert {name for name, kind in kinds.items() if kind == TYPE_F16} == {"fc1", "fc2"}
    assert file.keys["general.file_type"] == (U32, 2)


def test_q8_0_keeps_the_down_rows_f16(export):
    file, report, _ = export(type_name="Q8_0")
    kinds = {name.split(".")[-2]: kind for name, (_, kind, _, _) in file.tensors.items()}
    assert {name for name, kind in kinds.items() if kind == TYPE_F16} == {"ffn_down_t", "fc1", "fc2"}
    assert {name for name, kind in kinds.items() if kind == TYPE_Q8_0} == {
        "token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "output",
    }  # fmt: skip
    assert any(note.startswith("ffn_down_t is F16, the rest Q8_0: ") for note in report.notes)


def test_f32_keeps_the_down_rows_and_predictors_f16(export):
    file, report, _ = export(type_name="F32")
    kinds = {name.split(".")[-2]: kind for name, (_, kind, _, _) in file.tensors.items()}
    assert {name for name, kind in kinds.items() if kind == TYPE_F16} == {"ffn_down_t", "fc1", "fc2"}
    assert set(kinds.values()) == {TYPE_F16, TYPE_F32}
    assert any(note.startswith("ffn_down_t is F16, the rest F32: ") for note in report.notes)


def test_reglu_is_powerinfers_llama(export, make_sparse: Make):
    file, _, _ = export(make_sparse(activation="reglu"))
    assert file.keys["general.architecture"] == (STR, "llama")
    assert file.keys["llama.block_count"] == (U32, LAYERS)
    assert file.magic == b"PWRI"


def test_a_tied_head_is_copied(export, make_sparse: Make):
    file, _, _ = export(make_sparse(tie_word_embeddings=True))
    assert file.tensors["output.weight"][3] == file.tensors["token_embd.weight"][3]


def test_thresholds_do_not_carry_over_and_the_report_says_so(export):
    file, report, _ = export(threshold=0.25)
    assert file.keys["powerinfer.sparse_threshold"] == (F32, 0.0)
    assert report.notes[-1] == (
        "2 calibrated predictor thresholds do not carry over: PowerInfer's predictors see the input before the norm,"
        " where only threshold 0 keeps its meaning, so 0 is used; density and recall will differ"
    )


def test_thresholds_of_activations_are_left_out_and_the_report_says_so(export, drelu: Path, tmp_path: Path):
    folder = Path(shutil.copytree(drelu, tmp_path / "thresholds"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ffn_thresholds": [0.05] * LAYERS}))
    file, report, _ = export(folder)
    assert any(note.startswith("PowerInfer has no thresholds: activations") for note in report.notes)
    assert not any("threshold" in key for key in file.keys if not key.startswith("powerinfer."))


def test_the_context_is_capped_at_the_sliding_window(export, make_sparse: Make):
    file, report, _ = export(make_sparse(sliding_window=128))
    assert file.keys["bamboo.context_length"] == (U32, 128)
    assert report.notes[0] == (
        "context length capped at the sliding window, 128 of 256 tokens: PowerInfer attends to everything, which is the"
        " same only up to there"
    )


def test_few_neurons_take_powerinfers_other_kernel(export, make_sparse: Make):
    _, report, _ = export(make_sparse(intermediate_size=128))
    assert report.notes[-1] == (
        "warning: with 128 neurons PowerInfer takes its other kernel (n_ff <= 1000), whose results differ from those of"
        " the sparse one"
    )
