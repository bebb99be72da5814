"""What is refused, each with the whole sentence that the user reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tsconvert.cli import main
from tsconvert.common.errors import TsconvertError
from tsconvert.quant.export import ExportConfig, export_unverified

Make = Callable[..., Path]


def sentence(tmp_path: Path, model: Path, **options) -> str:
    out = tmp_path / "out" / "model.gguf"
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=model, out=out, **options))
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return str(caught.value)


def copy_of(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def edit(model: Path, name: str, change: Callable[[torch.Tensor], None]) -> Path:
    tensors = load_file(model / "model.safetensors")
    change(tensors[name])
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model / "model.safetensors"


def test_drelu_for_llama_cpp(tmp_path: Path, drelu: Path):
    assert sentence(tmp_path, drelu, target="llama.cpp") == (
        f"{drelu}: the FFN computes dReLU, which nothing in llama.cpp equals: it would compute SwiGLU in silence."
        " Export it with --target sparse or --target powerinfer, or convert with `relufy --activation tswiglu` (or"
        " reglu): such models run in llama.cpp, as dense ones at their dense speed"
    )


def test_predictors_for_llama_cpp(tmp_path: Path, dense: Path, make_predictors: Make):
    assert sentence(tmp_path, dense, predictors=make_predictors(dense)) == (
        "llama.cpp has no predictors; leave --predictors out or export with --target sparse"
    )


def test_experts_for_powerinfer(tmp_path: Path, sparse_moe: Path, make_predictors: Make):
    assert sentence(tmp_path, sparse_moe, target="powerinfer", predictors=make_predictors(sparse_moe)) == (
        f"{sparse_moe}: PowerInfer has no experts in sparse mode; export with --target sparse"
    )


def test_swiglu_for_powerinfer(tmp_path: Path, dense: Path, make_predictors: Make):
    assert sentence(tmp_path, dense, target="powerinfer", predictors=make_predictors(dense)) == (
        f"{dense}: PowerInfer's sparse mode computes dReLU and ReGLU, not swiglu; convert the dense model with"
        " `tsconvert relufy --activation drelu`"
    )


def test_no_predictors_for_powerinfer(tmp_path: Path, drelu: Path):
    assert sentence(tmp_path, drelu, target="powerinfer") == (
        f"{drelu}: PowerInfer needs a predictor for every FFN; train them with `tsconvert predictors` and give"
        " --predictors"
    )


def test_a_layer_without_a_predictor_for_powerinfer(tmp_path: Path, drelu: Path, make_predictors: Make):
    folder = make_predictors(drelu, [[16], [0]])
    assert sentence(tmp_path, drelu, target="powerinfer", predictors=folder) == (
        f"{folder}: layer 1 has no predictor (1 of 2 layers), and PowerInfer needs one for every FFN; train the missing"
        " ones or export with --target sparse"
    )


@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_types_that_powerinfer_turns_into_garbage(tmp_path: Path, drelu: Path, make_predictors: Make, type_name: str):
    options = {"tensor_types": (("ffn_down_t", type_name),), "predictors": make_predictors(drelu)}
    assert sentence(tmp_path, drelu, target="powerinfer", **options) == (
        f"blk.0.ffn_down_t.weight: PowerInfer's sparse product turns a {type_name} ffn_down_t into garbage without an"
        " error; choose --type F16, Q4_0, or F32 or Q8_0 (which leave it F16)"
    )


def test_a_type_that_powerinfer_does_not_have(tmp_path: Path, drelu: Path, make_predictors: Make):
    options = {"target": "powerinfer", "predictors": make_predictors(drelu)}
    assert sentence(tmp_path, drelu, tensor_types=(("attn_q", "BF16"),), **options) == (
        "blk.0.attn_q.weight: PowerInfer does not compute BF16; choose one of F32, F16, Q4_0, Q8_0"
    )
    assert sentence(tmp_path, drelu, predictor_type="Q4_0", tensor_types=(("fc2", "F16"),), **options) == (
        "blk.0.fc1.weight: PowerInfer takes predictors as F16, not Q4_0; leave --predictor-type out"
    )


def test_a_width_that_64_does_not_divide_for_powerinfer(tmp_path: Path, make_sparse: Make, make_predictors: Make):
    model = make_sparse(hidden_size=96)
    options = {"target": "powerinfer", "predictors": make_predictors(model)}
    assert sentence(tmp_path, model, type_name="Q4_0", **options) == (
        "blk.0.ffn_down_t.weight: PowerInfer needs a width that 64 divides for Q4_0, and this model's is 96;"
        " choose --type F16"
    )


def test_heads_of_another_size_for_powerinfer(tmp_path: Path, make_sparse: Make, make_predictors: Make):
    model = make_sparse(head_dim=32)
    assert sentence(tmp_path, model, target="powerinfer", predictors=make_predictors(model)) == (
        f"{model}: PowerInfer takes heads of 64/4, this model's have 32; export with --target sparse"
    )


def test_llama3_scaling_for_powerinfer(tmp_path: Path, make_sparse: Make, make_predictors: Make):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = make_sparse("llama", rope_parameters=rope | {"original_max_position_embeddings": 64})
    assert sentence(tmp_path, model, target="powerinfer", predictors=make_predictors(model)) == (
        f"{model}: PowerInfer has no llama3 rope scaling; export with --target sparse"
    )


def test_yarn_parameters_that_llama_cpp_would_not_take(tmp_path: Path, make_checkpoint: Make):
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    model = make_checkpoint("llama", rope_parameters=rope | {"beta_fast": 16.0})
    assert sentence(tmp_path, model) == (
        "config.json: rope_parameters make YaRN's yarn_beta_fast 16, and this engine always takes 32; export with"
        " --target sparse"
    )


def test_a_vocabulary_without_the_newline_byte_for_powerinfer(tmp_path: Path, drelu: Path, make_predictors: Make):
    model = copy_of(drelu, tmp_path)
    path = model / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<0x0A>", "<0xQA>"), encoding="utf-8")
    (model / "tokenizer.model").unlink()
    assert sentence(tmp_path, model, target="powerinfer", predictors=make_predictors(model)) == (
        "the vocabulary has no byte token <0x0A>, without which PowerInfer does not load a SentencePiece vocabulary;"
        " export with --target sparse"
    )


def test_predictors_of_another_model(tmp_path: Path, drelu: Path, make_predictors: Make):
    folder = make_predictors(drelu, fingerprint="0123456789abcdef")
    from tsconvert.model.checkpoint import open_checkpoint

    assert sentence(tmp_path, drelu, predictors=folder) == (
        f"{folder}: these predictors were trained for another model (fingerprint 0123456789ab, this one is"
        f" {open_checkpoint(drelu).fingerprint[:12]}); train them for this one"
    )


def test_predictors_of_another_shape(tmp_path: Path, drelu: Path, sparse_moe: Path, make_predictors: Make):
    from tsconvert.model.checkpoint import open_checkpoint

    folder = make_predictors(sparse_moe, fingerprint=open_checkpoint(drelu).fingerprint)
    assert sentence(tmp_path, drelu, predictors=folder) == (
        f"{folder}: the layers and experts are not this model's; train them again"
    )


def test_a_norm_with_zeros_keeps_an_inner_predictor_where_it_is(tmp_path: Path, drelu: Path):
    model = copy_of(drelu, tmp_path)
    tensors = load_file(model / "model.safetensors")
    norm = "model.layers.1.post_attention_layernorm.weight"
    tensors[norm][3] = 0
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.predictor."
        tensors |= {name + "fc1.weight": torch.ones(8, 64), name + "fc2.weight": torch.ones(1024, 8)}
    save_file(tensors, model / "model.safetensors")
    assert sentence(tmp_path, model) == (
        f"{model / 'model.safetensors'}: {norm} holds zeros, so the predictor in this checkpoint cannot be moved behind"
        " the norm; train one with `tsconvert predictors` and give --predictors"
    )


@pytest.mark.parametrize(
    ("name", "target"),
    [("model.embed_tokens.weight", "llama.cpp"), ("model.layers.1.mlp.down_proj.weight", "sparse"),
     ("model.layers.0.self_attn.k_proj.weight", "llama.cpp")],
)  # fmt: skip
def test_nan_stops_before_the_file_has_its_name(tmp_path: Path, dense: Path, name: str, target: str):
    def damage(tensor: torch.Tensor) -> None:
        tensor[5, 2] = float("nan")
        tensor[7, :3] = float("inf")

    model = copy_of(dense, tmp_path)
    file = edit(model, name, damage)
    assert sentence(tmp_path, model, target=target) == (
        f"{file}: tensor {name} holds 4 values that are NaN or infinite, the first in row 5; the weights are damaged or"
        " training diverged, go back to a sound checkpoint"
    )


def test_a_norm_with_nan(tmp_path: Path, dense: Path):
    model = copy_of(dense, tmp_path)
    file = edit(model, "model.norm.weight", lambda tensor: tensor.fill_(float("nan")))
    assert sentence(tmp_path, model) == (
        f"{file}: tensor model.norm.weight holds 64 values that are NaN or infinite, the first in row 0; the weights"
        " are damaged or training diverged, go back to a sound checkpoint"
    )


def test_values_beyond_f16(tmp_path: Path, dense: Path):
    model = copy_of(dense, tmp_path)
    edit(model, "model.layers.0.mlp.up_proj.weight", lambda tensor: tensor[0].fill_(-70000.0))
    assert sentence(tmp_path, model) == (
        "blk.0.ffn_up.weight: values reach 70000 and F16 ends at 65504; choose another type, for this tensor alone with"
        " --tensor-type blk.0.ffn_up.weight=F32"
    )


def test_an_output_that_exists(tmp_path: Path, dense: Path):
    out = tmp_path / "model.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=dense, out=out))
    assert str(caught.value) == f"{out}: exists already; choose another --out or remove it first"
    assert out.read_bytes() == b"mine"


def test_names_of_types_and_targets(tmp_path: Path, dense: Path):
    assert sentence(tmp_path, dense, type_name="Q4_K_X").startswith(
        "'Q4_K_X' is no type that weights can have; choose one of F32, F16, BF16, Q8_0, "
    )
    assert sentence(tmp_path, dense, tensor_types=(("attn_v", "Q4_K_M"),)).startswith(
        "'Q4_K_M' is no type that weights can have; choose one of F32, F16, Q4_0, "
    )
    assert sentence(tmp_path, dense, target="ollama") == (
        "target is 'ollama': it must be one of llama.cpp, powerinfer, sparse"
    )


def test_metadata_that_follows_from_the_model(tmp_path: Path, dense: Path):
    assert sentence(tmp_path, dense, metadata=(("llama.block_count", "3"),)) == (
        "--metadata llama.block_count: this key follows from the model; leave it out"
    )
    assert sentence(tmp_path, dense, metadata=(("tokenizer.ggml.tokens", "x"),)) == (
        "--metadata tokenizer.ggml.tokens: this key is an array, which cannot be set; leave it out"
    )
    assert sentence(tmp_path, dense, metadata=(("tokenizer.ggml.bos_token_id", "-1"),)) == (
        "--metadata tokenizer.ggml.bos_token_id: '-1' is no u32; give one"
    )


def test_the_command_prints_one_sentence_and_exits_2(tmp_path: Path, dense: Path):
    model = copy_of(dense, tmp_path)
    for name in ("tokenizer.json", "tokenizer.model"):
        (model / name).unlink()
    result = CliRunner().invoke(main, ["export-gguf", str(model), "--out", str(tmp_path / "x.gguf")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {model}: no tokenizer (tokenizer.json, tokenizer.model or tekken.json); copy the model's own there\n"
    )


def test_the_command_writes_a_file_and_one_json_object(tmp_path: Path, dense: Path):
    out = tmp_path / "x.gguf"
    arguments = [
        "export-gguf",
        str(dense),
        "--out",
        str(out),
        "--type",
        "q8_0",
        "--tensor-type",
        "attn_(q|k)=F32",
        "--json",
    ]
    result = CliRunner().invoke(main, [*arguments, "--metadata", "general.url=a=b"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["size_bytes"] == out.stat().st_size
    assert report["tensors"]["blk.0.attn_q.weight"] == "F32"
    assert np.fromfile(out, "S4", 1)[0] == b"GGUF"
