"""Files that contradict each other: read as transformers reads them, with a note, or refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.find_tensors import find_tensors
from tsconvert.model.sweep import sweep
from tsconvert.model.tensor_names import Place
from tsconvert.quant.export import ExportConfig, export_unverified

Make = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
ROWS_NS = torch.randint(3, 256, (2, 32), generator=torch.Generator().manual_seed(1))
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(make_checkpoint: Make) -> Path:
    return make_checkpoint("llama", vocab_size=256)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def into_shards(folder: Path, shards: dict[str, Tensors], index: dict[str, str]) -> None:
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def assert_same_logits(folder: Path, trust: bool = False) -> None:
    ours = torch.stack(list(sweep(Checkpoint(folder), ROWS_NS, []).logits(slice(None))))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)(input_ids=ROWS_NS).logits
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def refusal(folder: Path) -> str:
    with pytest.raises(TsconvertError) as caught:
        Checkpoint(folder)
    return str(caught.value)


def test_a_head_of_its_own_in_a_model_that_says_it_is_tied(folder: Path, tmp_path: Path):
    change_config(folder, tie_word_embeddings=True)
    found = find_tensors(folder)
    assert not found.spec.tied
    (note,) = found.notes
    assert note == (
        f"{folder}: tie_word_embeddings is true and lm_head.weight differs from model.embed_tokens.weight: the head is"
        " read from the file, as transformers does"
    )
    assert_same_logits(folder)
    relufy(RelufyConfig(model=str(folder), out=tmp_path / "s", recover="none", align=False))
    assert json.loads((tmp_path / "s" / "config.json").read_text())["tie_word_embeddings"] is False
    assert_same_logits(tmp_path / "s", trust=True)


def test_a_head_that_equals_the_embedding_is_tied(folder: Path):
    def equal(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_config(folder, tie_word_embeddings=True)
    change_tensors(folder, equal)
    found = find_tensors(folder)
    assert found.spec.tied
    assert not found.notes
    assert Place("output") not in found.infos
    change_tensors(folder, lambda tensors: tensors["lm_head.weight"][-1, -1].add_(1e-6))
    assert not find_tensors(folder).spec.tied
    change_tensors(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))  # transformers ties the other way
    assert find_tensors(folder).spec.tied
    assert_same_logits(folder)


def test_an_exported_file_has_the_head_of_its_own(make_checkpoint: Make, tmp_path: Path):
    folder, out = make_checkpoint("llama"), tmp_path / "m.gguf"
    change_config(folder, tie_word_embeddings=True)
    export_unverified(ExportConfig(model=str(folder), out=out, type_name="F32"))
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    head = load_file(folder / "model.safetensors")["lm_head.weight"].numpy()
    assert (tensors["output.weight"] == head).all()


def test_one_file_goes_before_the_shards_of_an_index(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    into_shards(
        folder, {"old.safetensors": {name: tensor * 2 for name, tensor in tensors.items()}},
        dict.fromkeys(tensors, "old.safetensors"),
    )  # fmt: skip
    (note,) = find_tensors(folder).notes
    assert note == (
        f"{folder}: model.safetensors is read, as transformers does, and not the shards of model.safetensors.index.json"
        " beside it"
    )
    assert_same_logits(folder)


def test_a_tensor_in_two_shards(folder: Path):
    """The index says which is read, where transformers reads the same; else the two must be alike."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = f"{QUERY}.weight"
    index = dict.fromkeys(tensors, "b.safetensors")
    repeated = {each: tensors[each].clone() for each in (name, "model.norm.weight")}
    shards = {"a.safetensors": repeated, "b.safetensors": tensors}
    into_shards(folder, shards, index | {"model.norm.weight": "a.safetensors"})
    found = find_tensors(folder)
    assert found.infos[Place("output_norm")].file.name == "a.safetensors"
    assert found.notes == [
        f"{folder}: 2 tensors are in two shards; those that model.safetensors.index.json names are read"
    ]
    assert_same_logits(folder)
    into_shards(folder, {"a.safetensors": {name: -tensors[name]}}, index | {"v_head.x": "a.safetensors"})
    assert_same_logits(folder)
    into_shards(folder, {}, index | {name: "a.safetensors"})
    assert refusal(folder) == (
        f"{folder / 'b.safetensors'}: tensor {name} has other values in a.safetensors, model.safetensors.index.json"
        " names a.safetensors and transformers reads b.safetensors; keep one of the two"
    )


def test_a_quantization_config_that_is_left_over(folder: Path, tmp_path: Path):
    before = Checkpoint(folder).fingerprint
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    (note,) = find_tensors(folder).notes
    assert note == (
        f"{folder / 'config.json'}: quantization_config (bitsandbytes) is left over, the weights are not quantized;"
        " they are read as they are"
    )
    assert Checkpoint(folder).fingerprint == before
    relufy(RelufyConfig(model=str(folder), out=tmp_path / "s", recover="none", align=False))
    assert_same_logits(tmp_path / "s", trust=True)


def test_weights_that_are_quantized(folder: Path):
    change_config(folder, quantization_config={"quant_method": "gptq"})
    change_tensors(folder, lambda tensors: tensors.update({f"{QUERY}.qweight": torch.zeros(8, 64)}))
    sentence = f"{folder / 'config.json'}: the weights are quantized (gptq); convert the unquantized checkpoint"
    assert refusal(folder) == sentence
    change_tensors(folder, lambda tensors: tensors.update({f"{QUERY}.qweight": torch.zeros(8, 64, dtype=torch.int32)}))
    assert refusal(folder) == sentence


@pytest.mark.parametrize("said", [False, True])
def test_biases(folder: Path, said: bool):
    """Zeros are left out, whatever config.json says; others count where it says so, and are refused where not."""
    size = {"q": 64, "k": 32, "v": 32, "o": 64}
    zeros = {f"{QUERY.replace('q_proj', f'{x}_proj')}.bias": torch.zeros(n) for x, n in size.items()}
    zeros |= {name.replace("layers.0", "layers.1"): tensor.clone() for name, tensor in zeros.items()}
    change_config(folder, attention_bias=said)
    change_tensors(folder, lambda tensors: tensors.update(zeros))
    assert find_tensors(folder).notes == [f"{folder / 'model.safetensors'}: 8 biases are 0 throughout and are left out"]
    assert_same_logits(folder)
    change_tensors(folder, lambda tensors: tensors[f"{QUERY}.bias"][0].add_(1e-8))
    if said:
        assert find_tensors(folder).spec.biases == ("attn_q", "attn_k", "attn_v", "attn_output")
        assert_same_logits(folder)
        return
    assert refusal(folder) == (
        f"{folder / 'model.safetensors'}: tensor {QUERY}.bias is a bias with values other than 0, and by config.json"
        " the llama model has none there; the two belong to different models, download both again"
    )


def test_a_value_head(folder: Path):
    head = {"v_head.summary.weight": torch.ones(1, 64), "v_head.summary.bias": torch.ones(1)}
    change_tensors(folder, lambda tensors: tensors.update(head))
    assert len(find_tensors(folder).notes) == 2
    assert_same_logits(folder)


@pytest.mark.parametrize(
    ("prefix", "todo"),
    [
        ("_orig_mod.", "a torch.compile wrapper was saved: save the model inside it (model._orig_mod)"),
        ("module.", "a data-parallel wrapper was saved: save the model inside it (model.module)"),
        (
            "base_model.model.",
            "a PEFT wrapper was saved: merge its adapters (merge_and_unload) and save what that returns",
        ),
        (
            "language_model.",
            "the model has other parts than the language model: save its language model alone",
        ),
    ],
)
def test_names_with_something_before_them(folder: Path, prefix: str, todo: str):
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    sentence = refusal(folder)
    assert sentence.endswith(f"has {prefix!r} before its name, so transformers would not find it either; {todo}")
    assert "download" not in sentence


def test_names_within_a_model_of_several_parts(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    names = {name: name.replace("model.", "model.language_model.", 1) for name in tensors}
    save_file({names[name]: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert "has 'model.language_model.' before its name" in refusal(folder)


def test_the_matrices_of_an_adapter(folder: Path):
    change_tensors(folder, lambda tensors: tensors.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 64)}))
    assert refusal(folder).endswith(
        "is of a LoRA adapter; merge it into the model (peft's merge_and_unload) and save that"
    )
