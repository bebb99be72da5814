"""Which neurons go to the GPU, and the file that tells PowerInfer, read by a parser of its own."""

import itertools
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.file import load_profile
from tsconvert.predictors.profile.profile import profile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.gguf.writer import write_gguf
from tsconvert.quant.targets.gpu_split import GROUP, solve_split, split_file

Make = Callable[..., Path]
U32, U64, STR, PWRI_I32 = 4, 10, 8, 18


def parse(path: Path) -> tuple[dict, dict[str, list[int]], list[str]]:
    raw, at = path.read_bytes(), 0

    def take(code: str):
        nonlocal at
        value = struct.unpack_from("<" + code, raw, at)
        at += struct.calcsize("<" + code)
        return value if len(value) > 1 else value[0]

    def string() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return raw[at - size : at].decode()

    assert (raw[:4], raw[4:8]) == (b"PWRI", struct.pack("<I", 3))
    at = 8
    tensors, keys = take("QQ")
    metadata = {}
    for _ in range(keys):
        key, kind = string(), take("I")
        metadata[key] = (kind, {U32: lambda: take("I"), U64: lambda: take("Q"), STR: string}[kind]())
    infos = []
    for _ in range(tensors):
        name, dimensions = string(), take("I")
        ne = [take("Q") for _ in range(dimensions)]
        assert (dimensions, take("I")) == (1, PWRI_I32)
        infos.append((name, ne[0], take("Q")))
    start = -(-at // 32) * 32
    values = {name: list(struct.unpack_from(f"<{n}i", raw, start + offset)) for name, n, offset in infos}
    return metadata, values, [name for name, *_ in infos]


def falling(layers: int, neurons: int, seed: int = 0) -> list[np.ndarray]:
    """Counts as models have them: a few hot neurons, and layers that differ."""
    rng = np.random.default_rng(seed)
    steep = rng.uniform(0.5, 2.5, layers)
    return [rng.permutation((np.arange(1, neurons + 1) ** -s * 1e12).astype(np.int64) + 1) for s in steep]


def best_by_trial(counts: list[np.ndarray], neuron_bytes: list[int], budget: int) -> float:
    """The most activations that fit, by trying every number of groups in every layer."""
    tables = []
    for count_F in counts:
        hot_first = np.sort(count_F)[::-1]
        tables.append([float(hot_first[: GROUP * n].sum()) for n in range(-(-len(count_F) // GROUP) + 1)])
    best = 0.0
    for choice in itertools.product(*(range(len(table)) for table in tables)):
        rows = [min(GROUP * n, len(count_F)) for n, count_F in zip(choice, counts, strict=True)]
        if sum(n * size for n, size in zip(rows, neuron_bytes, strict=True)) <= budget:
            best = max(best, sum(table[n] for n, table in zip(choice, tables, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_no_split_does_better(seed: int):
    counts = falling(4, 4 * GROUP - 100, seed)
    neuron_bytes, budget = [100, 130, 100, 90], 70_000 * (seed + 1)
    found = solve_split(counts, neuron_bytes, budget)
    taken = sum(float(count_F[rows].sum()) for count_F, rows in zip(counts, found.chosen, strict=True))
    assert taken == pytest.approx(best_by_trial(counts, neuron_bytes, budget), rel=1e-4)
    used = sum(len(rows) * size for rows, size in zip(found.chosen, neuron_bytes, strict=True))
    assert found.required_bytes == used <= budget
    for count_F, rows in zip(counts, found.chosen, strict=True):
        rest = np.delete(count_F, rows)
        assert not len(rows) or not len(rest) or count_F[rows].min() >= rest.max()


def test_the_7b_shape_is_solved_in_under_a_minute_and_fits():
    """32 layers of 14,336 neurons, Q4_0 rows of 4,096 weights, 2 GB."""
    counts = falling(32, 14336)
    neuron_bytes, budget = 3 * 4096 // 32 * 18 + 8, 2_000_000_000
    start_s = time.monotonic()
    found = solve_split(counts, [neuron_bytes] * 32, budget)
    assert time.monotonic() - start_s < 60
    assert budget - GROUP * neuron_bytes < found.required_bytes <= budget
    assert found.required_bytes == found.neurons * neuron_bytes


def test_layers_are_in_the_order_of_their_numbers(tmp_path: Path):
    """PowerInfer's exporter sorts 0, 1, 10, 11, 2, ... as text."""
    counts = [np.arange(512)[::-1] * 0 + np.where(np.arange(512) // 16 == layer, 1000, 1) for layer in range(32)]
    found = solve_split(counts, [10] * 32, 10 * 32 * GROUP)
    companion = split_file(found, [512] * 32, tmp_path / "x")
    with (tmp_path / "x").open("wb") as stream:
        write_gguf(stream, companion.metadata, companion.tensors, magic=companion.magic)
    metadata, tensors, names = parse(tmp_path / "x")
    assert names == [f"blk.{layer}.{kind}" for layer in range(32) for kind in ("gpu_idx", "gpu_bucket")]
    assert metadata == {
        "general.architecture": (STR, "generic.gpu_index"), "generic.gpu_index.block_count": (U32, 32),
        "split.vram_capacity": (U64, found.required_bytes),
    }  # fmt: skip
    for layer in range(32):
        bucket, index = tensors[f"blk.{layer}.gpu_bucket"], tensors[f"blk.{layer}.gpu_idx"]
        assert set(range(16 * layer, 16 * layer + 16)) <= set(bucket)
        assert bucket == [row for row, used in enumerate(index) if used]
        assert sorted(set(index)) == [0, 1]


@pytest.fixture(scope="module")
def counted(make_sparse: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    model = make_sparse(intermediate_size=1024, seed=9)
    out = tmp_path_factory.mktemp("profile") / "profile.safetensors"
    profile(ProfileConfig(model=str(model), out=out, tokens=512, context=64))
    return model, out


def options(counted: tuple[Path, Path], make_predictors: Make) -> dict:
    return {"model": counted[0], "target": "powerinfer", "predictors": make_predictors(counted[0])}


@pytest.mark.parametrize("order", [True, False])
def test_the_file_beside_the_export(counted, make_predictors: Make, tmp_path: Path, order: bool):
    out = tmp_path / "m.gguf"
    given = options(counted, make_predictors)
    report = export_unverified(ExportConfig(out=out, profile=counted[1], order=order, vram_bytes=1_400_000, **given))
    metadata, tensors, _ = parse(tmp_path / "m.gguf.generated.gpuidx")
    counts = [load_profile(counted[1]).counts(layer) for layer in range(2)]
    counts = [np.sort(count_F)[::-1] if order else count_F for count_F in counts]
    chosen = [tensors[f"blk.{layer}.gpu_bucket"] for layer in range(2)]
    assert 0 < sum(map(len, chosen)) < 2048
    for count_F, rows in zip(counts, chosen, strict=True):
        assert not rows or count_F[rows].min() >= max(np.delete(count_F, rows), default=0)
        assert not order or rows == list(range(len(rows)))
    before = 2 * 2 * (2 * 64 * 64 + 2 * 32 * 64 + 24 * 64 + 1024 * 24) + 2 * 4096 * 64 + 5 * 64 * 4
    before += 2 * 2 * 2 * 32 * 512  # keys and values, F16, two layers
    assert metadata["split.vram_capacity"][1] == sum(map(len, chosen)) * (3 * 64 * 2 + 8) <= 1_400_000 - before
    assert "GPU split for 1.4 MB" in report.notes[-1]


def test_what_vram_cannot_do(counted, make_predictors: Make, drelu: Path, tmp_path: Path):
    out, given = tmp_path / "m.gguf", options(counted, make_predictors)

    def refused(**changed) -> str:
        with pytest.raises(TsconvertError) as caught:
            export_unverified(ExportConfig(out=out, **(given | changed)))
        assert not list(tmp_path.glob("m.gguf*"))
        return str(caught.value)

    assert refused(vram_bytes=10**9) == "--vram needs to know how often neurons fire; give --profile"
    assert refused(vram_bytes=10**5, profile=counted[1]) == (
        "--vram 100.0 KB: attention, predictors, head and 512 tokens of KV cache take 810.2 KB on the GPU before any"
        " FFN row; give at least that"
    )
    assert refused(vram_bytes=10**9, target="sparse") == (
        "--vram splits a model for PowerInfer, and the target is sparse; leave it out"
    )
    assert refused(vram_bytes=10**9, profile=counted[1], type_name="Q8_0") == (
        "blk.0.ffn_gate.weight: PowerInfer's GPU kernels take F16 and Q4_0, not Q8_0; choose one of those with --vram"
    )
