import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.plan.config import Described, PlanConfig
from tsconvert.evaluate.plan.estimate import plan
from tsconvert.evaluate.plan.machine import machine_of, measure_bandwidth
from tsconvert.evaluate.plan.model_bytes import (
    cache_bytes,
    experts_read,
    file_bytes,
    token_bytes,
    typical_rates,
    union,
)
from tsconvert.evaluate.plan.speed import RUNNER, speed
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.model.named_config import read_model_config
from tsconvert.model.spec import ModelSpec
from tsconvert.predictors.cost import Bits, Rates, exact_bytes, low_rank_bytes, predicted_bytes
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.density import weight_bytes
from tsconvert.runner.model import load

Make = Callable[..., Path]
DESKTOP = Described(bandwidth_gb=60, cores=8, memory_bytes=32 * 10**9)
SEVEN_B = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096,
    "hidden_act": "silu", "torch_dtype": "bfloat16",
}  # fmt: skip
EXPERTS = SEVEN_B | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.fixture
def config(tmp_path: Path) -> Callable[[dict], str]:
    """config(fields) writes a config.json and nothing else."""

    def write(fields: dict) -> str:
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return str(tmp_path / "config.json")

    return write


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
@pytest.mark.parametrize("type_name", ["F16", "Q8_0", "Q4_0", "Q4_K_M", "Q3_K_S"])
def test_files_have_the_planned_bytes(family: str, type_name: str, make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint(family, hidden_size=256, intermediate_size=512, num_attention_heads=4)
    export_unverified(ExportConfig(model=folder, out=tmp_path / "m.gguf", type_name=type_name))
    tensors = GgufFile(tmp_path / "m.gguf").tensors.values()
    found = file_bytes(read_model_config(str(folder))[1], type_name)
    assert found.total == sum(tensor.raw.nbytes for tensor in tensors)
    for name, size in found.types.items():
        assert size == sum(tensor.raw.nbytes for tensor in tensors if tensor.type_name == name), name


def spec_of_7b(**changes) -> ModelSpec:
    from tsconvert.model.spec import spec_of

    return spec_of(SEVEN_B | changes, Path("config.json"))


def test_what_a_token_reads_is_what_the_predictors_cost_model_says():
    spec, rates = replace(spec_of_7b(), activation="drelu"), typical_rates(0.1)
    size = file_bytes(spec, "F16", rank=512)
    around = size.attention + size.output
    exact = spec.layers * exact_bytes(4096, 14336, rates, Bits())
    low_rank = low_rank_bytes(4096, 14336, 512, Bits())
    predicted = spec.layers * predicted_bytes(4096, 14336, low_rank, rates, Bits())
    assert token_bytes(spec, size, "exact", rates).total - around == pytest.approx(exact)
    assert token_bytes(spec, size, "predicted", rates).total - around == pytest.approx(predicted)
    assert token_bytes(spec, size, "dense", rates).total == size.total - size.embedding - size.predictors


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_what_a_token_reads_is_what_the_runner_counts(family: str, make_checkpoint: Make, tmp_path: Path):
    relufy(RelufyConfig(model=str(make_checkpoint(family)), out=tmp_path / "s", recover="none", align=False))
    export_unverified(ExportConfig(model=tmp_path / "s", out=tmp_path / "m.gguf", type_name="Q8_0"))
    with load(tmp_path / "m.gguf", mode="exact", threads=1) as model:
        for token in range(300, 310):
            model.feed([token])
        density = model.density
        read = weight_bytes(model.source, density, "exact")
    rates = Rates(gate=float(density.up.mean()), fired=float(density.down.mean()))
    spec = read_model_config(str(tmp_path / "s"))[1]
    assert token_bytes(spec, file_bytes(spec, "Q8_0"), "exact", rates).total == pytest.approx(read, rel=1e-6)


def test_experts_of_a_batch():
    spec = replace(spec_of_7b(), experts=8, experts_per_token=2)
    assert experts_read(spec, 1) == (0.25, pytest.approx(1.0))
    share, tokens = experts_read(spec, 4)
    assert share == pytest.approx(1 - 0.75**4)
    assert share * tokens == pytest.approx(4 * 2 / 8)  # each token takes two
    assert experts_read(spec_of_7b(), 4) == (1.0, 4.0)
    assert union(0.1, 1) == pytest.approx(0.1)
    assert union(0.1, 3) == pytest.approx(1 - 0.9**3)


def test_a_token_of_a_mixture_reads_the_experts_that_it_takes():
    spec = replace(spec_of_7b(), experts=8, experts_per_token=2)
    size = file_bytes(spec, "Q8_0")
    read = token_bytes(spec, size, "dense", typical_rates(0.1))
    assert read.streamed - size.attention - size.output == pytest.approx((size.gate + size.up + size.down) / 4)


def test_speed_is_what_the_formula_says():
    spec = replace(spec_of_7b(), activation="drelu")
    machine, size = machine_of(DESKTOP), file_bytes(spec, "Q8_0", rank=256)
    rates = Rates(gate=0.2, fired=0.1, predicted=0.15, predicted_gate=0.1, hit=0.08)
    found = speed(spec, size, machine, type_name="Q8_0", mode="predicted", rates=rates, position=100)
    rows, share = 32 * 14336, RUNNER.bandwidth_share
    core = {kind: max(1 / (share * 60e9), 1 / (8 * RUNNER.core_bytes_per_s[kind])) for kind in ("Q8_0", "F16")}
    assert set(size.parts["output"]) == {"Q8_0"}
    head = size.output * core["Q8_0"]
    attention = size.attention * core["Q8_0"]  # norms are F32, a few KB
    streamed_s = attention + head + size.predictors * core["F16"] + cache_bytes(spec, 100) * core["F16"]
    here_s = (0.15 + 0.1 + 0.08) * (size.gate * core["Q8_0"] + rows * RUNNER.row_s / 8)
    assert found.tokens_per_s == pytest.approx(1 / (streamed_s + here_s + 32 * RUNNER.layer_s), rel=1e-3)
    assert found.fits


def test_what_is_beyond_memory_comes_from_the_disk():
    spec = spec_of_7b()
    small = machine_of(replace(DESKTOP, memory_bytes=8 * 10**9, disk_speed_gb=2))
    size, rates = file_bytes(spec, "F16"), typical_rates(0.1)
    found = speed(spec, size, small, type_name="F16", mode="dense", rates=rates)
    there = speed(spec, size, machine_of(DESKTOP), type_name="F16", mode="dense", rates=rates)
    assert not found.fits
    missing = (found.memory_bytes - 8e9) / size.total
    read = token_bytes(spec, size, "dense", rates).total + cache_bytes(spec, 512)
    assert found.seconds_per_step - there.seconds_per_step == pytest.approx(missing * read / 2e9)


def test_a_plan_from_a_config_alone(config):
    report = plan(PlanConfig(model=config(SEVEN_B), machine=DESKTOP))
    assert report.parameters == 7_241_732_096
    assert report.source_bytes == 2 * report.parameters
    assert [stage.name for stage in report.stages] == [
        "relufy", "profile", "predictors", "imatrix", "export-gguf F16", "export-gguf Q8_0", "export-gguf Q4_K_M",
        "export-gguf Q4_0",
    ]  # fmt: skip
    fast = {(row.type, row.mode): row.tokens_per_s for row in report.speeds}
    assert fast["Q4_0", "predicted"] > fast["Q4_0", "exact"] > fast["Q4_0", "dense"] > fast["Q8_0", "dense"]
    assert all(row.fits for row in report.speeds)
    share = report.files["F16"].predictors * 8 / 4.5 / report.parameters  # they are Q4_0 in any file
    assert share == pytest.approx(0.04, rel=0.1)
    json.dumps(report.to_json())


def test_what_would_not_fit_is_said(config):
    machine = replace(DESKTOP, disk_free_bytes=50 * 10**9, memory_bytes=6 * 10**9)
    report = plan(PlanConfig(model=config(EXPERTS), types=("Q4_0",), machine=machine))
    stages = {stage.name: stage.problem for stage in report.stages}
    assert stages["relufy"].endswith("; needs 93.4 GB of disk, 50.0 are free")
    assert stages["profile"] == "needs 8.4 GB of memory, the machine has 6.0"
    assert stages["export-gguf Q4_0"] == ""
    assert not any(row.fits for row in report.speeds)
    assert "DOES NOT FIT" in str(report)


def test_a_sparse_model_needs_no_relufy(config):
    report = plan(PlanConfig(model=config(SEVEN_B | {"model_type": "turbosparse_mistral"}), machine=DESKTOP))
    assert report.stages[0].name == "profile"


def test_the_machine_is_described_in_people_s_units_or_measured():
    said = Described(bandwidth_gb=67.2, cores=8, memory_bytes=10**10, gflops=500.0, disk_speed_gb=3.0)
    machine = machine_of(said)
    assert (machine.bandwidth, machine.flops, machine.disk_bytes_per_s) == (67.2e9, 5e11, 3e9)
    assert machine.measured == ()
    assert 1e9 < measure_bandwidth(1) < 1e12
    with pytest.raises(TsconvertError) as caught:
        machine_of(Described(cores=8))
    assert str(caught.value) == "--bandwidth is missing: say how fast the machine's memory is, or add --measure"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"density": 0.0}, "--density 0: it must be above 0 and at most 1"),
        ({"batch": 0}, "--batch 0: it must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(change: dict, said: str):
    with pytest.raises(TsconvertError) as caught:
        PlanConfig(model="x", **change)
    assert str(caught.value) == said


def test_a_config_that_is_none(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TsconvertError, match=r"config\.json: not JSON \(.*\); give a model's config\.json"):
        plan(PlanConfig(model=str(tmp_path / "config.json"), machine=DESKTOP))
