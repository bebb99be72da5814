"""What `plan` reckons against runs that were measured (measured_runs.json): within 25 %."""

import json
from pathlib import Path
from typing import Any

import pytest

from tsconvert.convert.config.local import LocalRecovery
from tsconvert.evaluate.plan.machine import Machine
from tsconvert.evaluate.plan.model_bytes import file_bytes
from tsconvert.evaluate.plan.speed import RUNNER, speed
from tsconvert.evaluate.plan.stages import Settings, stages
from tsconvert.model.spec import ModelSpec, spec_of
from tsconvert.predictors.config import Training
from tsconvert.predictors.cost import Rates

RUNS = json.loads(Path(__file__).with_name("measured_runs.json").read_text())
SHAPES = {entry["name"]: entry for entry in RUNS["stages"]["shapes"]}
STAGES = [(entry["name"], row) for entry in RUNS["stages"]["shapes"] for row in entry["rows"]]


def spec_7b(shape: dict[str, int], layers: int, *, sparse: bool) -> ModelSpec:
    """As benchmarks/shapes.py writes it."""
    family = ("turbosparse_" if sparse else "") + ("mixtral" if shape.get("experts") else "mistral")
    config = {
        "model_type": family, "hidden_size": shape["width"], "intermediate_size": shape["neurons"],
        "num_hidden_layers": layers, "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"],
        "vocab_size": 32000, "max_position_embeddings": 4096, "num_local_experts": shape.get("experts"),
    }  # fmt: skip
    return spec_of(config, Path("config.json"))


def machine(**known: Any) -> Machine:
    usual = {"bandwidth": 45e9, "cores": 1, "memory_bytes": 10**11, "flops": 1e11, "disk_bytes_per_s": 1e9}
    return Machine(**(usual | known))


@pytest.mark.parametrize(("shape", "row"), STAGES, ids=[f"{shape} {row['stage']}" for shape, row in STAGES])
def test_stages(shape: str, row: dict[str, Any]):
    made, entry = RUNS["stages"], SHAPES[shape]
    spec = spec_7b(entry["shape"], 1, sparse=row["stage"] != "relufy")
    settings = Settings(
        tokens=made["tokens"], rank=made["rank"], source_bytes=2 * spec.parameters,
        recovery=LocalRecovery(steps=made["steps"], batch_tokens=made["batch_tokens"], autocast=False),
        training=Training(steps=made["predictor_steps"], autocast=False),
    )  # fmt: skip
    found = {stage.name: stage for stage in stages(spec, machine(flops=entry["gflops"] * 1e9), settings, {}, None)}
    assert found[row["stage"]].time_s == pytest.approx(row["s"], rel=0.25)
    if row["gb"] is not None:
        assert found[row["stage"]].memory_bytes == pytest.approx(row["gb"] * 1e9, rel=0.25)


@pytest.mark.parametrize("row", RUNS["exports"]["rows"], ids=lambda row: row["type"])
def test_exports(row: dict[str, Any]):
    spec = spec_7b(SHAPES["7b"]["shape"], 32, sparse=False)
    files = {row["type"]: file_bytes(spec, row["type"])}
    here = machine(cores=2, disk_bytes_per_s=row["disk_gb_per_s"] * 1e9)
    (found,) = stages(spec, here, Settings(source_bytes=2 * spec.parameters), files, None)[-1:]
    assert found.time_s == pytest.approx(row["s"], rel=0.25)
    assert found.disk_bytes == pytest.approx(row["gb"] * 1e9, rel=0.001)


@pytest.mark.parametrize("row", RUNS["generation"]["rows"], ids=lambda row: f"{row['type']} {row['mode']}")
def test_generation(row: dict[str, Any]):
    shape = row.get("shape") or SHAPES["7b"]["shape"]
    spec = spec_7b(shape, row.get("layers", 32), sparse=row["mode"] != "dense" or row.get("sparse", False))
    size = file_bytes(spec, row["type"], row.get("rank", 0), row.get("predictor_type", "F16"))
    found = speed(
        spec, size, machine(bandwidth=row["bandwidth_gb_per_s"] * 1e9, cores=row["cores"]), type_name=row["type"],
        mode=row["mode"], rates=Rates(**row["rates"]), position=row.get("position", 64), engine=RUNNER,
    )  # fmt: skip
    assert found.tokens_per_s == pytest.approx(row["tokens_per_s"], rel=0.25)
