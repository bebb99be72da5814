"""What fits into a budget: the plan's arithmetic from given measurements, on real shapes."""

import re
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.common.units import parse_duration
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.cost import relufy_cost
from tsconvert.evaluate.conversion.config import ConvertConfig
from tsconvert.evaluate.conversion.plan import Plan, plan_conversion
from tsconvert.evaluate.conversion.same_process import COMMANDS
from tsconvert.evaluate.plan.machine import Machine
from tsconvert.model.named_config import read_model_config
from tsconvert.model.spec import ModelSpec

HOUR = 3600.0
SMOL = ModelSpec(
    family="llama", layers=30, width=576, neurons=1536, heads=9, kv_heads=3, head_dim=64, vocab=49_152, context=2048,
    tied=True, activation="swiglu", norm_eps=1e-5, rope_theta=1e5,
)  # fmt: skip
SEVEN = read_model_config(
    str(Path(__file__).parents[3] / "evaluate" / "conversion" / "recipes" / "mistral-7b.json")
)[1]  # fmt: skip


def machine(flops: float = 400e9, memory: float = 16e9, disk: float = 500e9) -> Machine:
    return Machine(
        bandwidth=40e9, cores=2, memory_bytes=int(memory), flops=flops, disk_bytes_per_s=1e9, disk_free_bytes=int(disk)
    )


def planned(spec: ModelSpec, budget_s: float, where: Machine | None = None, **asked: object) -> Plan:
    config = ConvertConfig(model="m", out=Path("o"), budget_s=budget_s, **asked)  # type: ignore[arg-type]
    where = where or machine()
    return plan_conversion(config, spec, 2 * spec.parameters, where, where.flops)


def words(plan: Plan, name: str) -> dict[str, str]:
    """The options of a stage."""
    line = next(step.line for step in plan.steps if step.name == name)
    return dict(re.findall(r"(--[\w-]+) (\S+)", line))


def test_an_hour_for_a_small_model_is_mostly_the_whole_model_s_training():
    plan = planned(SMOL, HOUR, activation="drelu")
    assert 0.9 * HOUR < plan.time_s <= HOUR
    recover = words(plan, "recover")
    assert recover["--recover"] == "full"
    assert (recover["--predictors"], recover["--target-sparsity"]) == ("predictors", "0.9")
    step = next(step for step in plan.steps if step.name == "recover")
    assert step.time_s > 0.75 * HOUR
    assert parse_duration(recover["--time-limit"]) == pytest.approx(step.time_s, abs=1)
    # what it says of the tokens is what relufy's own arithmetic makes of the time
    tokens = int(re.search(r"about ([\d,]+) tokens of the whole", plan.why)[1].replace(",", ""))
    assert 2 * tokens < int(recover["--full-tokens"]) < 4 * tokens  # the clock ends it, on a faster machine later
    assert 100_000 < tokens < 5_000_000


def test_twice_as_fast_a_machine_trains_on_twice_as_many_tokens():
    slow, fast = (int(words(planned(SMOL, HOUR, machine(rate)), "recover")["--full-tokens"]) for rate in (2e11, 4e11))
    assert fast == pytest.approx(2.2 * slow, rel=0.15)


def test_stages_are_commands_that_can_be_typed():
    for plan in (planned(SMOL, HOUR), planned(SMOL, HOUR, activation="drelu"), planned(SEVEN, 24 * HOUR)):
        for step in plan.steps:
            name, *rest = step.line.replace("{model}", "m").split(" ")
            if "'" not in step.line:
                with COMMANDS[name].make_context(name, rest) as context:
                    assert context.params, step.line


def test_thresholds_need_no_layers_trained_and_no_predictors():
    plan = planned(SMOL, HOUR)
    recover = words(plan, "recover")
    assert recover["--activation"] == "tswiglu"
    assert not {"--steps", "--predictors"} & set(recover)
    assert "predicted" not in [step.name for step in plan.steps]
    assert "--up-passes" not in recover
    assert words(planned(SMOL, HOUR, up_passes=1.0), "recover")["--up-passes"] == "1"
    drelu = int(words(planned(SMOL, HOUR, activation="drelu", predictors=False), "recover")["--full-tokens"])
    assert int(recover["--full-tokens"]) > drelu  # no local stage


def test_a_model_whose_training_memory_does_not_hold_is_recovered_by_layers():
    plan = planned(SEVEN, 48 * HOUR)
    recover = words(plan, "recover")
    assert recover["--recover"] == "local"
    assert "memory is too small" in plan.why
    assert "--full-tokens" not in recover
    step = next(step for step in plan.steps if step.name == "recover")
    config = RelufyConfig(
        model="m", out=Path("o"), recover="local", tokens=int(recover["--tokens"]),
        training=RelufyConfig(model="m", out=Path("o")).training,
    )  # fmt: skip
    assert step.memory_bytes <= 16e9
    assert relufy_cost(SEVEN, 0, 0, config, 1e12).memory_bytes <= 16e9
    assert words(plan, "file")["--type"] == "Q4_0"


def test_more_time_is_more_steps():
    few, many = (int(words(planned(SEVEN, hours * HOUR), "recover")["--steps"]) for hours in (12, 72))
    assert few < many


@pytest.mark.parametrize(("spec", "budget_s", "activation"), [
    (SMOL, 60.0, "drelu"), (SMOL, 60.0, "tswiglu"), (SEVEN, HOUR, "drelu"), (SEVEN, 600.0, "reglu"),
])  # fmt: skip
def test_a_budget_that_is_too_small_is_said_with_what_would_do(spec: ModelSpec, budget_s: float, activation: str):
    with pytest.raises(TsconvertError) as error:
        planned(spec, budget_s, activation=activation)
    found = re.search(r"too little for anything useful from m .* give --budget (\w+) or more$", str(error.value))
    assert found, str(error.value)
    assert planned(spec, 1.02 * parse_duration(found[1]), activation=activation).steps


def test_a_disk_and_a_memory_that_are_too_small_are_said():
    with pytest.raises(TsconvertError, match=r"o: needs .* of disk and 1\.0 GB are free; make room"):
        planned(SMOL, HOUR, machine(disk=1e9))
    with pytest.raises(TsconvertError, match=r"m: recovery needs .* of memory and 1\.0 GB are free"):
        planned(SEVEN, 100 * HOUR, machine(memory=1e9))


def test_what_is_missing_is_said():
    with pytest.raises(TsconvertError, match="--budget is missing: give MODEL and --budget"):
        ConvertConfig(model="m", out=Path("o"))
    with pytest.raises(TsconvertError, match="MODEL is missing"):
        ConvertConfig(out=Path("o"), budget_s=1.0)


def test_shares_that_cannot_be_are_refused_before_anything_is_measured():
    with pytest.raises(TsconvertError, match=r"--target-sparsity 1\.5: it must lie between 0 and 1"):
        ConvertConfig(model="m", out=Path("o"), budget_s=1.0, target_sparsity=1.5)
    with pytest.raises(TsconvertError, match=r"--up-passes 0\.05: it must lie between the share that is to fire"):
        ConvertConfig(model="m", out=Path("o"), budget_s=1.0, up_passes=0.05)


@pytest.mark.parametrize(
    ("text", "time_s"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172_800)]
)
def test_times_as_people_write_them(text: str, time_s: float):
    assert parse_duration(text) == time_s


@pytest.mark.parametrize("text", ["", "10", "1x", "m", "0s", "1h x"])
def test_what_is_no_time(text: str):
    with pytest.raises(TsconvertError, match="is no time; write it like 90s, 10m or 1h30m"):
        parse_duration(text)
