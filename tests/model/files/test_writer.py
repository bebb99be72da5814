import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tsconvert.common import files as writer_module
from tsconvert.common.errors import TsconvertError
from tsconvert.common.files import atomic_file, atomic_folder, check_disk, refuse_existing, write_json
from tsconvert.model.files.safetensors_files import read_header
from tsconvert.model.files.writer import CheckpointWriter, PlannedTensor

PLAN = [PlannedTensor(name=f"t{i}", dtype="F32", shape=(i + 1, 3)) for i in range(6)]


def raw(i: int) -> np.ndarray:
    return np.full((i + 1, 3), i, np.float32).view(np.uint8)


@pytest.mark.parametrize("limit", [10**9, 100, 1])
def test_tensors_written_in_any_order_are_read_back(tmp_path: Path, limit: int):
    with CheckpointWriter(tmp_path, PLAN, max_shard_bytes=limit) as writer:
        for i in (3, 0, 5, 1, 2, 4):
            writer.write(f"t{i}", raw(i))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == {10**9: 1, 100: 4, 1: 6}[limit]
    assert (tmp_path / "model.safetensors.index.json").exists() == (len(files) > 1)
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert all((tensors[f"t{i}"] == i).all() and tensors[f"t{i}"].shape == (i + 1, 3) for i in range(6))


def test_an_opened_plan_keeps_what_was_written(tmp_path: Path):
    for i in (2, 3):
        with CheckpointWriter(tmp_path, PLAN) as writer:
            writer.write(f"t{i}", raw(i))
    tensors = load_file(tmp_path / "model.safetensors")
    assert (tensors["t2"] == 2).all()
    assert (tensors["t3"] == 3).all()


def test_a_wrong_size_is_our_own_mistake(tmp_path: Path):
    with CheckpointWriter(tmp_path, PLAN) as writer, pytest.raises(ValueError, match="t0: 24 bytes for a slot of 12"):
        writer.write("t0", raw(1))


def test_a_file_that_failed_never_gets_its_name(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(path) as stream:
        stream.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert not list(tmp_path.glob("*.json.partial"))


def test_a_folder_that_failed_stays_partial_and_can_be_resumed(tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        (folder / "done").touch()
        raise RuntimeError
    assert not out.exists()
    with atomic_folder(out, resume=True) as folder:
        assert (folder / "done").exists()
    assert (out / "done").exists()
    with pytest.raises(TsconvertError) as caught, atomic_folder(out):
        pass
    assert str(caught.value) == f"{out}: exists already; choose another --out or remove it first"


def test_without_resume_the_partial_folder_is_emptied(tmp_path: Path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").touch()
    with atomic_folder(tmp_path / "out") as folder:
        assert not list(folder.iterdir())


def test_a_full_disk_is_said_before_work_starts(tmp_path: Path):
    with pytest.raises(TsconvertError, match=r"needs 1,000,000,000,000,000,000 bytes and .* free; make room"):
        check_disk(tmp_path / "new" / "out", 10**18)
    refuse_existing(tmp_path / "new")


@pytest.mark.parametrize("kernel", [True, False])
def test_a_tensor_is_copied_by_the_kernel_or_in_pieces(tmp_path: Path, monkeypatch, kernel: bool):
    values = np.arange(1000, dtype=np.float32)
    plan = [PlannedTensor(name="a", dtype="F32", shape=(8,)), PlannedTensor(name="b", dtype="F32", shape=(1000,))]
    with CheckpointWriter(tmp_path, plan[1:]) as writer:
        writer.write("b", values.view(np.uint8))
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range")
        monkeypatch.setattr(writer_module, "_PIECE_BYTES", 333)
    source = read_header(tmp_path / "model.safetensors")["b"]
    (tmp_path / "copy").mkdir()
    with CheckpointWriter(tmp_path / "copy", plan) as writer:
        writer.write("a", values[:8].view(np.uint8))
        writer.copy("b", source)
    assert np.array_equal(load_file(tmp_path / "copy" / "model.safetensors")["b"], values)


def test_a_source_that_shrinks_is_named(tmp_path: Path, monkeypatch):
    plan = [PlannedTensor(name="b", dtype="F32", shape=(1000,))]
    with CheckpointWriter(tmp_path, plan) as writer:
        writer.write("b", np.zeros(4000, np.uint8))
    source = read_header(tmp_path / "model.safetensors")["b"]
    os.truncate(source.file, 2000)
    (tmp_path / "copy").mkdir()
    with CheckpointWriter(tmp_path / "copy", plan) as writer, pytest.raises(TsconvertError) as caught:
        writer.copy("b", source)
    assert str(caught.value) == f"{source.file}: became shorter while it was read; start again"
