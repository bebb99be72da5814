"""What was found, by reading or by the fuzz program: each file with one thing wrong, and the sentence that it gets.

Before the fix each of these hung, took memory without end, wrote beyond a buffer or ended in a traceback.
"""

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_inputs as ck
import gguf_inputs as gg
import numpy as np
import predictor_inputs as pr
import pytest
import tokenizer_inputs as tk
import torch

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.predictors.folder import load_predictors
from tsconvert.predictors.powerinfer_folder import load_powerinfer_predictors
from tsconvert.predictors.profile.file import load_profile
from tsconvert.quant.imatrix.file import load_imatrix
from tsconvert.quant.quantize import QuantizeConfig, quantize
from tsconvert.quant.vocabulary.reader import read_vocabulary
from tsconvert.runner.chat_template import render
from tsconvert.runner.files.model_file import open_model
from tsconvert.runner.model import load
from tsconvert.runner.tokenizer import GgufTokenizer
from tsconvert.text.sentencepiece import read_model

Change = Callable[[gg.Description], None]


@pytest.fixture(scope="module")
def bases() -> dict[str, gg.Description]:
    return gg.bases()


def refusal(run: Callable[[], Any], path: Path) -> str:
    with pytest.raises(TsconvertError) as caught:
        run()
    return str(caught.value).replace(str(path), "FILE")


def key(name: str, value: Any, kind: int | None = None) -> Change:
    def change(file: gg.Description) -> None:
        kinds = {each: kind for each, kind, _ in file.keys}
        file.keys = [each for each in file.keys if each[0] != name]
        file.keys.append((name, kinds.get(name, gg.U32) if kind is None else kind, value))

    return change


def tensor(which: str, /, **fields: Any) -> Change:
    def change(file: gg.Description) -> None:
        found = next(each for each in file.tensors if each.name == which)
        for field, value in fields.items():
            setattr(found, field, value)

    return change


def made(bases: dict[str, gg.Description], path: Path, base: str, change: Change) -> Path:
    file = gg.copied(bases[base])
    change(file)
    path.write_bytes(gg.written(file))
    return path


ARCH = "turbosparse."
BETA = "turbosparse.rope.scaling.yarn_beta_fast"
GGUF: list[tuple[str, Change, str]] = [
    ("llama", key("split.count", 2**62, gg.U64), f"FILE: split.count is {2**62}; download or write the file again"),
    (
        "sparse",
        tensor("blk.0.attn_k.weight", offset=0),
        "FILE: damaged, tensors token_embd.weight and blk.0.attn_k.weight overlap; download or write the file again",
    ),
    (
        "experts",
        key(ARCH + "expert_count", 2**31),
        "FILE: layers is 2 and experts is 2147483648: no model has more than 131072 FFNs; write the file again",
    ),
    (
        "llama",
        key("llama.block_count", 2**32 - 1),
        "FILE: layers is 4294967295: it must be at most 2147483647; write the file again",
    ),
    (
        "llama",
        key("llama.block_count", 2**31 - 1),
        "FILE: layers is 2147483647 and experts is 0: no model has more than 131072 FFNs; write the file again",
    ),
    (
        "llama",
        key("llama.attention.head_count_kv", 0),
        "FILE: kv_heads is 0: it must be at least 1; write the file again",
    ),
    (
        "sparse",
        key(ARCH + "predictor.threshold", (gg.STRING, ["a", "b"])),
        "FILE: turbosparse.predictor.threshold needs 2 numbers; export it again",
    ),
    (
        "powerinfer",
        key("powerinfer.sparse_threshold", "0.5", gg.STRING),
        "FILE: key powerinfer.sparse_threshold is '0.5', it must be a number; write the file again",
    ),
    (
        "llama",
        key("llama.rope.freq_base", 0.0),
        "FILE: rope_theta is 0: it must be a number above 0; write the file again",
    ),
    ("llama", key("llama.rope.freq_base", 1.0), "FILE: rope scaling yarn over a base of 1; write the file again"),
    (
        "sparse",
        key(BETA, 0.0, gg.F32),
        f"FILE: key {BETA} is 0.0, it must be 0.000001 to 1000000; write the file again",
    ),
    (
        "llama",
        key("llama.attention.layer_norm_rms_epsilon", -1.0),
        "FILE: norm_eps is -1: it must be a number of at least 0; write the file again",
    ),
    (
        "sparse_f16",
        tensor("blk.0.attn_q.weight", type_id=25, raw=b"\x00" * 2048),
        "FILE: tensor blk.0.attn_q.weight is I16, no type to compute with; write the file again in another",
    ),
    (
        "llama",
        tensor("output_norm.weight", type_id=26),
        "FILE: tensor output_norm.weight: I32 holds no weights that could be decoded; write the file again",
    ),
    (
        "llama",
        tensor("output_norm.weight", name="x" * 70_000),
        "FILE: damaged, a tensor's name has 70000 bytes; download or write the file again",
    ),
    (
        "llama",
        tensor("output_norm.weight", name="\x1b[2J", ne=[0]),
        "FILE: damaged, tensor '\\x1b[2J' has a name that cannot be printed; download or write the file again",
    ),
]


@pytest.mark.parametrize(("base", "change", "sentence"), GGUF)
def test_gguf(bases, tmp_path: Path, base: str, change: Change, sentence: str):
    path = made(bases, tmp_path / "m.gguf", base, change)
    assert refusal(lambda: open_model(path), path) == sentence


NO_TOKENS = (
    "FILE: the tokenizer's keys are damaged (tokens of more characters than any model has, or no types); write the file"
    " again"
)
NO_MERGE = (
    "FILE: the tokenizer's keys are damaged (Error while initializing BPE: Token `zz` out of vocabulary); write the"
    " file again"
)
TOKENIZERS: list[tuple[str, Change, str]] = [
    (
        "llama",
        key("tokenizer.ggml.bos_token_id", 48),
        "FILE: key tokenizer.ggml.bos_token_id is 48, none of 48 tokens; write the file again",
    ),
    (
        "llama",
        key("tokenizer.ggml.eos_token_id", (gg.U32, [1, 2]), gg.ARRAY),
        "FILE: key tokenizer.ggml.eos_token_id is [1, 2], none of 48 tokens; write the file again",
    ),
    (
        "llama",
        key("tokenizer.ggml.token_type", 3, gg.U32),
        NO_TOKENS,
    ),
    (
        "llama",
        key("tokenizer.ggml.tokens", (gg.STRING, ["a" * 1_000_000] * 3)),
        NO_TOKENS,
    ),
    (
        "powerinfer",
        key("tokenizer.ggml.merges", (gg.STRING, ["zz yy"])),
        NO_MERGE,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("base", "change", "sentence"), TOKENIZERS)
def test_tokenizers_of_gguf_files(bases, tmp_path: Path, base: str, change: Change, sentence: str):
    path = made(bases, tmp_path / "m.gguf", base, change)
    assert refusal(lambda: GgufTokenizer(GgufFile(path)), path) == sentence


def test_routers_of_nan_choose_each_expert_once(bases, tmp_path: Path):
    """They chose the first one every time, and lists of a block's tokens ran over into the next buffer."""
    nan = np.full((3, 32), np.nan, np.float32).tobytes()

    def change(file: gg.Description) -> None:
        for layer in range(2):
            tensor(f"blk.{layer}.ffn_gate_inp.weight", raw=nan)(file)

    path = made(bases, tmp_path / "m.gguf", "experts", change)
    with load(path, threads=1, context=64) as model:
        model.logits([1] * 40)
        choice = model._engine.buffers["choice"][:40]
        assert (choice[:, 0] != choice[:, 1]).all()
        with pytest.raises(TsconvertError, match="the logits are NaN or infinite"):
            list(model.generate([1, 2, 3], limit=1))


def test_quantize_asks_keys_that_are_numbers(bases, tmp_path: Path):
    path = made(bases, tmp_path / "m.gguf", "llama", key("llama.block_count", "x", gg.STRING))
    config = QuantizeConfig(source=path, out=tmp_path / "q.gguf", type_name="Q8_0", allow_requantize=True)
    sentence = "FILE: key llama.block_count is 'x', no whole number; write the file again"
    assert refusal(lambda: quantize(config), path) == sentence


def test_an_importance_matrix_with_a_number_for_its_texts(bases, tmp_path: Path):
    path = made(bases, tmp_path / "i.gguf", "imatrix", key("imatrix.datasets", 3, gg.U32))
    sentence = "FILE: the keys imatrix.* are of other types than llama-imatrix writes; make it again"
    assert refusal(lambda: load_imatrix(path), path) == sentence


def checkpoint(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], base: Any = ck.CONFIG) -> Path:
    config = json.loads(json.dumps(base))
    header, data = ck.tensors_of(config)
    change(config, header)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(ck.packed(json.dumps(header).encode(), data))
    return folder


NORM = "model.norm.weight"
HEADERS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda header: header[NORM].update(shape=[float("inf")]), "the safetensors header is damaged; download it again"),
    (lambda header: header[NORM].update(shape=[10**18] * 9), "the safetensors header is damaged; download it again"),
    (
        lambda header: header[NORM].update(data_offsets=[float(n) for n in header[NORM]["data_offsets"]]),
        "the safetensors header is damaged; download it again",
    ),
    (
        lambda header: header[NORM].update(dtype="F32", data_offsets=[0, 64]),
        "tensors model.embed_tokens.weight and model.norm.weight overlap; download it again",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), HEADERS)
def test_safetensors(tmp_path: Path, change, sentence: str):
    folder = checkpoint(tmp_path, lambda config, header: change(header))
    assert refusal(lambda: Checkpoint(folder), folder / "model.safetensors") == f"FILE: {sentence}"


def test_a_name_that_stands_twice_in_a_header(tmp_path: Path):
    checkpoint(tmp_path, lambda config, header: None)
    path = tmp_path / "model.safetensors"
    header, data = ck.tensors_of(ck.CONFIG)
    raw = json.dumps(header)
    entry = json.dumps({NORM: header[NORM]})[1:-1]
    path.write_bytes(ck.packed(("{" + entry + "," + raw[1:]).encode(), data))
    assert refusal(lambda: Checkpoint(tmp_path), path) == ("FILE: the safetensors header is damaged; download it again")


def test_a_layer_of_five_thousand_digits(tmp_path: Path):
    name = f"model.layers.{'9' * 5000}.mlp.up_proj.weight"
    checkpoint(tmp_path, lambda config, header: header.update({name: header.pop(NORM)}))
    assert refusal(lambda: Checkpoint(tmp_path), tmp_path) == (
        "FILE: tensor model.norm.weight is missing; the checkpoint is incomplete, download it again"
    )


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"rms_norm_eps": "abc"}, "rms_norm_eps is 'abc'; it must be a number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a number"),
    ({"rope_theta": 10**400}, f"rope_theta is 1{'0' * 56}...; it must be a number"),
    ({"sliding_window": "wide"}, "sliding_window is 'wide'; it must be a whole number of at least 1"),
    ({"model_type": ["mistral"]}, "model_type is ['mistral']; tsconvert converts llama, mistral, mixtral,"),
    ({"quantization_config": "fp8"}, "the weights are quantized (unknown); convert the unquantized checkpoint"),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 0}},
        "factor is 0; it must be above 0",
    ),
    (
        {"model_type": "mixtral", "num_local_experts": 10**12, "rope_scaling": None},
        "layers is 2 and experts is 1000000000000: no model has more than 131072 FFNs",
    ),
]


@pytest.mark.parametrize(("fields", "sentence"), CONFIGS)
def test_config(tmp_path: Path, fields: dict[str, Any], sentence: str):
    folder = checkpoint(tmp_path, lambda config, header: config.update(fields))
    assert refusal(lambda: Checkpoint(folder), folder / "config.json").startswith(f"FILE: {sentence}")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a" * 300, "", "\ud800/x"])
def test_an_index_that_leads_out_of_its_folder(tmp_path: Path, shard: str):
    checkpoint(tmp_path, lambda config, header: None)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {NORM: shard}}))
    sentence = refusal(lambda: Checkpoint(tmp_path), path)
    assert sentence.endswith("is no file name within the folder; do not trust this checkpoint")


def test_a_tensor_in_two_shards(tmp_path: Path):
    header, data = ck.tensors_of(ck.CONFIG)
    (tmp_path / "config.json").write_text(json.dumps(ck.CONFIG))
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(ck.packed(json.dumps(header).encode(), data))
        data = bytes(len(data))
    index = {"weight_map": {NORM: "a.safetensors", "lm_head.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sentence = refusal(lambda: Checkpoint(tmp_path), tmp_path / "b.safetensors")
    assert sentence == (
        "FILE: tensor model.embed_tokens.weight has other values in a.safetensors, model.safetensors.index.json names"
        " neither and transformers reads b.safetensors; keep one of the two"
    )


def test_ids_far_beyond_the_number_of_tokens(tmp_path: Path):
    content = json.loads(json.dumps(tk.contents()["bpe"]))
    content["model"]["vocab"]["the"] = 4_000_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tk.CONFIG))
    assert "4000000000 among their ids; download it again" in refusal(lambda: read_vocabulary(tmp_path, 64), tmp_path)


@pytest.mark.parametrize(
    "raw", [b"\x08" + b"\xff" * 200_000, b"\x0a\x02\x08\x01", tk._field(1, b"\x1a\x01a"), b"\x12\x01\x00"]
)
def test_a_sentencepiece_model_that_is_none(tmp_path: Path, raw: bytes):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(raw)
    assert refusal(lambda: read_model(path), path).startswith("FILE: not a SentencePiece")


def predictor_folder(folder: Path, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> Path:
    header, data = pr.safetensors_of(arrays)
    (folder / "layer-00000.safetensors").write_bytes(ck.packed(json.dumps(header).encode(), data))
    whole = {"format_version": 2, "model_fingerprint": "0", "thresholds": [[0.1]], "report": {}} | config
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


FC = {"experts.0.fc1.weight": np.ones((4, 16), np.float32), "experts.0.fc2.weight": np.ones((24, 4), np.float32)}
NO_PREDICTORS = "FILE: not a predictor folder that can be read"
SIGN_BITS = "FILE/layer-00000.safetensors: expert 0: it holds sign bits, which no version since 0.1 uses"
SIGNS = {"experts.0.signs": np.ones((1, 24, 2), np.uint8), "experts.0.width": np.array(16, np.float32)}


@pytest.mark.parametrize(
    ("arrays", "config", "sentence"),
    [
        (FC, {"thresholds": [[np.nan]]}, f"{NO_PREDICTORS} (a threshold is NaN or infinite); train them again"),
        (FC, {"report": 3}, f"{NO_PREDICTORS} (config.json lacks what training writes there); train them again"),
        (SIGNS, {}, f"{SIGN_BITS}; train them again"),
        (
            {name: array.astype(np.int32) for name, array in FC.items()}, {},
            "FILE/layer-00000.safetensors: expert 0: fc1 and fc2 are empty or hold no floats; train them again",
        ),
    ],
)  # fmt: skip
def test_predictor_folders(tmp_path: Path, arrays, config: dict[str, Any], sentence: str):
    folder = predictor_folder(tmp_path, arrays, config)
    assert refusal(lambda: load_predictors(folder, "0").ffns[0], folder) == sentence


def bomb() -> bytes:
    """A thousand bytes that unpack to sixteen million."""
    stream, out = io.BytesIO(), io.BytesIO()
    torch.save({"fc1.weight": torch.zeros(1 << 18, 16), "fc2.weight": torch.zeros(24, 4)}, stream)
    with zipfile.ZipFile(stream) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as squeezed:
        for info in archive.infolist():
            squeezed.writestr(info.filename, archive.read(info))
    return out.getvalue()


def strided() -> bytes:
    """One number that says it is sixteen million."""
    stream = io.BytesIO()
    torch.save({"fc1.weight": torch.zeros(1).expand(1 << 20, 16), "fc2.weight": torch.zeros(24, 4)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (bomb, "FILE: its parts are compressed, overlap or are damaged; get the file again"),
        (strided, "FILE: not a state dict of fc1.weight and fc2.weight; get the file again"),
        (
            lambda: b"cos\nsystem\n(S'true'\ntR.",
            "FILE: not a file that torch.save writes since PyTorch 1.6; save it again, or get it again",
        ),
    ],
)
def test_pt_files(tmp_path: Path, raw, sentence: str):
    checkpoint(tmp_path, lambda config, header: None, ck.DRELU)
    opened = Checkpoint(tmp_path)
    folder = tmp_path / "predictors"
    folder.mkdir()
    (folder / "config.json").write_text('{"sparse_threshold": 0.0}')
    path = folder / "model_0.pt"
    path.write_bytes(raw())
    assert refusal(lambda: load_powerinfer_predictors(folder, opened), path) == sentence


def test_a_profile_whose_tables_do_not_fit(tmp_path: Path):
    pr.make_profile(random.Random(1), tmp_path)
    about = {"format_version": 1, "model_fingerprint": "0", "corpora": ["a", "b"], "tokens": [1, 2], "layers": []}
    arrays = {"counts": np.ones((2, 1, 1, 24), np.int64), "tokens": np.ones((2, 1, 1), np.int64)}
    header, data = pr.safetensors_of(arrays, {"tsconvert": json.dumps(about)})
    path = tmp_path / "p.safetensors"
    path.write_bytes(ck.packed(json.dumps(header).encode(), data))
    sentence = "FILE: not a profile that can be read (its tables do not fit each other); make it again"
    assert refusal(lambda: load_profile(path), path) == sentence


REFUSED = "m.gguf: the chat template refuses these messages"
LEAVE_OUT = "leave --system or --chat out"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "m.gguf: the chat template did not come to an end in 1 s; do not trust this file",
        ),
        ("{{ 'x' * 9999999999 }}", "m.gguf: the chat template takes too much memory; do not trust this file"),
        (
            "{{ ''.__class__.__mro__ }}",
            f"{REFUSED} (access to attribute '__class__' of 'str' object is unsafe.); {LEAVE_OUT}",
        ),
        ("{{ 1 / 0 }}", f"{REFUSED} (division by zero); {LEAVE_OUT}"),
    ],
)
def test_chat_templates(template: str, sentence: str):
    with pytest.raises(TsconvertError) as caught:
        render(template, {"messages": []}, where="m.gguf", seconds=1)
    assert str(caught.value) == sentence
