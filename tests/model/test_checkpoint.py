import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import Checkpoint, open_checkpoint
from tsconvert.model.files.dtypes import from_float32, to_float32
from tsconvert.model.files.locate import find_model
from tsconvert.model.tensor_names import Place, hf_name, model_places

Make = Callable[..., Path]


@pytest.fixture
def copy(dense: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dense, tmp_path / "m"))


def sentence(folder: Path) -> str:
    with pytest.raises(TsconvertError) as caught:
        Checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
def test_every_tensor_is_read_as_the_safetensors_library_reads_it(make_checkpoint: Make, family: str):
    folder = make_checkpoint(family, dtype=torch.bfloat16)
    checkpoint = Checkpoint(folder)
    theirs = load_file(folder / "model.safetensors")
    assert {hf_name(checkpoint.spec, place) for place in checkpoint.places} == set(theirs)
    for place in checkpoint.places:
        assert np.array_equal(checkpoint.array(place), theirs[hf_name(checkpoint.spec, place)].float().numpy())


def test_shards_are_found_by_the_index(make_checkpoint: Make):
    folder = make_checkpoint("mistral", max_shard="500KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    checkpoint = Checkpoint(folder)
    assert checkpoint.places == list(model_places(checkpoint.spec))


def test_fused_experts_read_as_the_unfused_ones(moe: Path, tmp_path: Path):
    unfused = Checkpoint(moe)
    tensors = {name: t for name, t in load_file(moe / "model.safetensors").items() if "block_sparse_moe" not in name}
    for layer in range(2):
        stack = {role: [] for role in ("ffn_gate", "ffn_up", "ffn_down")}
        for expert in range(4):
            for role, parts in stack.items():
                parts.append(torch.from_numpy(unfused.array(Place(role, layer, expert)).copy()))
        gate_up = [torch.cat(pair) for pair in zip(stack["ffn_gate"], stack["ffn_up"], strict=True)]
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack(gate_up)
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack(stack["ffn_down"])
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = torch.from_numpy(
            unfused.array(Place("router", layer)).copy()
        )
    shutil.copyfile(moe / "config.json", tmp_path / "config.json")
    save_file(tensors, tmp_path / "model.safetensors")
    fused = Checkpoint(tmp_path)
    assert fused.places == unfused.places
    for place in fused.places:
        assert np.array_equal(fused.array(place), unfused.array(place))
    assert fused.fingerprint == unfused.fingerprint


def test_fingerprints_do_not_change_with_the_version():
    """What was trained for a model must not be refused by a later version of tsconvert."""
    expected = "bd5cdfcf97c1"
    assert open_checkpoint("tiny-mistral").fingerprint.startswith(expected)


def test_the_fingerprint_changes_with_one_bit(copy: Path):
    before = Checkpoint(copy).fingerprint
    assert Checkpoint(copy).fingerprint == before
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "model.safetensors").write_bytes(raw)
    assert Checkpoint(copy).fingerprint != before


def test_a_missing_shard_is_named(make_checkpoint: Make, tmp_path: Path):
    folder = Path(shutil.copytree(make_checkpoint("mistral", max_shard="500KB"), tmp_path / "m"))
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert sentence(folder) == (f"{shard}: shard is missing (named in model.safetensors.index.json); download it again")


def test_a_truncated_file_is_named_with_its_tensor(copy: Path):
    file = copy / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-100])
    assert sentence(copy) == f"{file}: cut off, tensor model.norm.weight lacks 100 bytes at the end; download it again"
    file.write_bytes(raw[:5])
    assert sentence(copy) == f"{file}: not a safetensors file, or cut off in its header; download it again"
    file.write_bytes(raw[:8] + b"x" * 1000 + raw[1008:])
    assert sentence(copy) == f"{file}: the safetensors header is damaged; download it again"


def test_a_missing_tensor_is_named(copy: Path):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors")
    assert sentence(copy) == (
        f"{copy}: tensor model.layers.1.mlp.up_proj.weight is missing; the checkpoint is incomplete, download it again"
    )


def test_a_wrong_shape_is_named(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    assert sentence(copy) == (
        f"{copy / 'model.safetensors'}: tensor model.layers.0.mlp.gate_proj.weight has shape [128, 64] where"
        " config.json makes it [96, 64]; config and weights belong to different models, download both again"
    )


def test_a_tensor_without_a_place_is_named(copy: Path):
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {"model.layers.0.mlp.adapter": torch.zeros(2)}, copy / "model.safetensors")
    assert sentence(copy).endswith(
        "tensor model.layers.0.mlp.adapter has no place in a mistral model;"
        " remove it (an adapter?) or convert the base model"
    )


def test_an_index_cannot_leave_its_folder(copy: Path):
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'../other.safetensors' is no file name within the folder" in sentence(copy)


def test_what_is_no_model_is_said(tmp_path: Path):
    with pytest.raises(TsconvertError, match="no such folder or file; give a checkpoint folder, a GGUF file, a hub id"):
        find_model(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(TsconvertError, match=r"a file, and not GGUF; give that or the folder that holds config\.json"):
        find_model(tmp_path / "file")
    with pytest.raises(TsconvertError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def test_bfloat16_rounds_as_torch_does():
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    values[:8] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3.4e38, 1.00390625]
    ours = to_float32(from_float32(values, "BF16"), "BF16")
    theirs = torch.from_numpy(values).bfloat16().float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(to_float32(from_float32(values, "F32"), "F32"), values, equal_nan=True)
