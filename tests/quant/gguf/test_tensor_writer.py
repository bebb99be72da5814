"""The writer's threads: pieces land where they belong; nothing is written where a value is not sound."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf import ggml
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.gguf.parallel_file import ParallelFile
from tsconvert.quant.gguf.tensor_plan import MatrixRows, TensorPlan, largest_magnitude
from tsconvert.quant.gguf.tensor_writer import check_tensors, write_tensors


def source_of(raw_RC: np.ndarray, dtype: str) -> MatrixRows:
    return MatrixRows(
        rows=raw_RC.shape[0], columns=raw_RC.shape[1], dtype=dtype, read=lambda a, b: raw_RC[a:b], check=lambda: 0.0
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_of_stacked_matrices_land_where_they_belong(tmp_path: Path, threads: int):
    rng = np.random.default_rng(4)
    experts = [rng.standard_normal((1300, 1024)).astype(np.float32) for _ in range(3)]  # more than a piece each
    weights = rng.random((3, 1024)).astype(np.float32)
    stack = [source_of(rows, "F32") for rows in experts]
    tensors = [
        TensorPlan(name="a", shape=(3, 1300, 1024), type_name="Q4_K", source=stack, importance_EC=weights),
        TensorPlan(name="b", shape=(2, 64), type_name="F32", source=lambda: [np.ones((1, 64), np.float32)] * 2),
    ]
    done = []
    size = 100 + sum(tensor.size_bytes for tensor in tensors)
    with (tmp_path / "f").open("wb") as stream, ParallelFile(stream, size) as file:
        write_tensors(file, [(tensors[0], 100), (tensors[1], 100 + tensors[0].size_bytes)], done.append, threads)
    content = (tmp_path / "f").read_bytes()[100:]
    expected = [ggml.quantize_chunk(rows, "Q4_K", weights[i]).tobytes() for i, rows in enumerate(experts)]
    assert content == b"".join(expected) + np.ones((2, 64), np.float32).tobytes()
    assert sorted(done) == ["a", "b"]


def test_an_error_in_a_thread_stops_all_and_leaves_nothing(tmp_path: Path, dense: Path):
    def broken() -> list:
        raise RuntimeError("disk on fire")

    tensors = [(TensorPlan(name="a", shape=(1, 32), type_name="F32", source=broken), 0)]
    with (
        (tmp_path / "f").open("wb") as stream,
        ParallelFile(stream, 128) as file,
        pytest.raises(RuntimeError, match="disk on fire"),
    ):
        write_tensors(file, tensors, lambda _: None)


@pytest.mark.parametrize("target", ["llama.cpp", "sparse"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_value_that_is_not_finite_stops_before_anything_is_written(
    tmp_path: Path, dense: Path, value: float, target: str, monkeypatch: pytest.MonkeyPatch
):
    model = Path(shutil.copytree(dense, tmp_path / "model"))
    file = model / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][7, 3:5] = value
    save_file(tensors, file, metadata={"format": "pt"})
    opened = []
    monkeypatch.setattr("tsconvert.quant.gguf.shards.atomic_file", lambda path: opened.append(path))
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=model, out=tmp_path / "out" / "m.gguf", type_name="Q8_0", target=target))
    assert str(caught.value) == (
        f"{file}: tensor {name} holds 2 values that are NaN or infinite, the first in row 7; the weights are damaged or"
        " training diverged, go back to a sound checkpoint"
    )
    assert opened == []
    assert not (tmp_path / "out").exists()


def test_too_large_for_f16_stops_before_anything_is_written(tmp_path: Path):
    big = source_of(np.full((2, 32), 7e4, np.float32), "F32")
    plan = TensorPlan(name="x.weight", shape=(2, 32), type_name="F16", source=[replace(big, check=lambda: 7e4)])
    with pytest.raises(TsconvertError) as caught:
        check_tensors([plan])
    assert str(caught.value) == (
        "x.weight: values reach 70000 and F16 ends at 65504; choose another type, for this tensor alone with"
        " --tensor-type x.weight=F32"
    )


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_largest_magnitude_by_bits(dtype: str):
    rng = np.random.default_rng(5)
    values = rng.standard_normal(70_001).astype(np.float32)
    for put, expected in ((None, None), (-9.0, 9.0), (np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan)):
        if put is not None:
            values[68_000] = put
        raw = {
            "F32": values,
            "F16": values.astype(np.float16),
            "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
        }
        found = largest_magnitude(raw[dtype], dtype)
        if expected is None:
            decoded = raw[dtype] if dtype != "BF16" else (raw[dtype].astype(np.uint32) << 16).view(np.float32)
            assert found == np.abs(decoded).max()
        else:
            assert found == expected or (np.isnan(found) and np.isnan(expected))


BOUNDS = {
    "Q8_0": 1 / 254 + 2**-11,
    "Q6_K": 1 / 30,
    "Q5_K": 1 / 15,
    "Q4_K": 1 / 7,
    "Q4_0": 1 / 8,
    "Q5_0": 1 / 16,
    "Q4_1": 1 / 15,
    "Q5_1": 1 / 31,
}


@pytest.mark.parametrize("name", BOUNDS)
def test_decoded_errors_are_within_the_types_bound(tmp_path: Path, name: str):
    """Half a step of a block's largest (one for the end that Q4_0 and Q5_0 cut off), and the half-precision scale's."""
    out = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model="tiny-mistral", out=out, type_name=name, pure=True))
    checkpoint, found = open_checkpoint("tiny-mistral"), GgufFile(out).tensors["blk.1.ffn_down.weight"]
    place = next(place for place in checkpoint.places if (place.role, place.layer) == ("ffn_down", 1))
    source, decoded = checkpoint.array(place), found.to_float32()
    assert found.type_name == name
    block = ggml.TYPES[name].weights
    error = np.abs(decoded - source).reshape(-1, block).max(axis=1)
    assert (error <= BOUNDS[name] * 1.05 * np.abs(source).reshape(-1, block).max(axis=1)).all()


@pytest.mark.parametrize("type_name", ["F16", "Q8_0", "Q4_K", "IQ2_XS"])
def test_values_beyond_the_scales_of_a_type_are_refused(type_name: str):
    values = np.ones((1, 256), np.float32)
    values[0, 3] = 7e4
    plan = TensorPlan(name="x.weight", shape=(1, 256), type_name=type_name, source=lambda: [values])
    with pytest.raises(TsconvertError, match=r"^x\.weight: values reach 70000.* --tensor-type x\.weight=F32$"):
        check_tensors([plan])
    check_tensors([TensorPlan(name="x.weight", shape=(1, 256), type_name="F32", source=lambda: [values])])
