"""convert: a recipe run here, killed and gone on with; a budget held by the clock; the card, the recipe, the page."""

import json
import os
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest
import yaml

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.full.callbacks import bend
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.check.run import CheckConfig, check
from tsconvert.evaluate.conversion import clock as clock_module
from tsconvert.evaluate.conversion.clock import Clock, spent
from tsconvert.evaluate.conversion.config import ConvertConfig
from tsconvert.evaluate.conversion.plan import Plan, Step
from tsconvert.evaluate.conversion.recipe_file import as_done
from tsconvert.evaluate.conversion.run import ConvertReport, convert
from tsconvert.evaluate.plan.machine import Machine
from tsconvert.text.sources import Source

RECIPE = """format = 1
name = "small"
[variables]
model = "none"
[stages]
dense = "eval {model} --tokens 1K --ctx 128 --save-logits dense-logits.safetensors"
recover = "relufy {model} --out sparse --tokens 2K --context 128 --steps 3 --batch-tokens 128 --seed 3"
file = "export-gguf sparse --out sparse.gguf --type Q8_0"
exact = "eval sparse.gguf --sparsity exact --against dense-logits.safetensors"
speed = "bench sparse.gguf -p 4 -n 4 -r 1"
text = "run sparse.gguf -p 'The people' -n 4 --temp 0"
[limits.exact]
perplexity_ratio.max = 3
"""

# argument 1 -> where the process kills itself
KILLED = """
import os, signal, sys

def die():
    os.kill(os.getpid(), signal.SIGKILL)

where, *words = sys.argv[1:]
if where == "layer":
    from tsconvert.model.files.journal import Journal
    add = Journal.add
    def dies(self, layer, found):
        add(self, layer, found)
        die()
    Journal.add = dies
else:
    import tsconvert.evaluate.export as export
    export._verified = lambda config, report: die()
from tsconvert.cli import main
main(words, prog_name="tsconvert")
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "small.toml"
    file.write_text(RECIPE)
    return file


def asked(dense: Path, recipe: Path, out: Path, **more: object) -> ConvertConfig:
    return ConvertConfig(model=str(dense), recipe=recipe, out=out, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(dense: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertReport:
    """A conversion that nothing ended."""
    return convert(asked(dense, recipe, tmp_path_factory.mktemp("whole") / "out"))


def killed(where: str, *words: object) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, where, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def test_killed_twice_and_gone_on_with_it_leaves_the_same(
    dense: Path, recipe: Path, whole: ConvertReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = ["convert", dense, "--recipe", recipe, "--out", out]
    killed("layer", *words)
    assert not (out / "sparse").exists()
    with pytest.raises(TsconvertError, match="exists already"):
        convert(asked(dense, recipe, out))
    killed("verify", *words, "--resume")
    assert (out / "sparse.gguf").exists()
    assert not (out / "file.json").exists()
    capsys.readouterr()
    found = convert(asked(dense, recipe, out, resume=True))
    said = capsys.readouterr().err
    assert [stage.name for stage in found.stages if stage.reused] == ["dense", "recover"]
    assert "-- file: tsconvert export-gguf" in said
    shown = said.split("-- text: tsconvert run ")[1].splitlines()[1:]
    assert "\n".join(shown).startswith("   " + found.stages[-1].result["text"].splitlines()[0])
    for name in ("sparse/model.safetensors", "sparse.gguf"):
        assert (out / name).read_bytes() == (whole.out / name).read_bytes(), name
    theirs = {stage.name: stage.result for stage in whole.stages}
    ours = {stage.name: stage.result for stage in found.stages}
    assert ours["exact"]["perplexity"] == theirs["exact"]["perplexity"]
    assert ours["recover"]["layers"] == theirs["recover"]["layers"]


def test_what_it_leaves(whole: ConvertReport, dense: Path):
    out = whole.out
    names = {path.name for path in out.iterdir()}
    assert {"sparse", "sparse.gguf", "report.html", "convert.json", "exact.json"} <= names
    assert "dense-logits.safetensors" not in names
    assert not [name for name in names if name.endswith((".partial", ".local", ".full"))]
    card = (out / "sparse" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == [dense.name]
    assert "sparse" in head["tags"]
    exact = next(stage.result for stage in whole.stages if stage.name == "exact")
    assert f"| exact | {exact['perplexity']:,.2f} | {exact['perplexity_ratio']:.3f} |" in card
    assert "trust_remote_code=True" in card
    said = str(whole)
    assert f"{exact['perplexity_ratio']:.3f} ±" in said
    assert "too small a model to gain" in said
    assert "The people |" in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "The people" in page
    # the recorded command of a stage is the stage's own
    record = json.loads((out / "sparse" / "tsconvert.json").read_text())
    assert record["command"].startswith(f"tsconvert relufy {dense} --out sparse ")


def test_the_same_recipe_is_what_check_runs(dense: Path, recipe: Path, tmp_path: Path, whole: ConvertReport):
    report = check(CheckConfig(spec=recipe, out=tmp_path / "out", variables={"model": str(dense)}))
    report.require()
    found = next(stage.result for stage in report.stages if stage.name == "exact")
    theirs = next(stage.result for stage in whole.stages if stage.name == "exact")
    assert found["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-5)


def test_one_that_had_hardly_begun_is_begun(dense: Path, tmp_path: Path):
    file, out = tmp_path / "look.toml", tmp_path / "out"
    file.write_text('format = 1\n[stages]\nlook = "inspect {model}"\n[variables]\nmodel = "none"\n')
    out.mkdir()
    (out / "recipe.toml.partial").touch()
    found = convert(asked(dense, file, out, resume=True))
    assert found.stages[0].result["kind"] == "mistral checkpoint"


def test_a_conversion_with_other_settings_is_not_gone_on_with(dense: Path, recipe: Path, whole: ConvertReport):
    with pytest.raises(TsconvertError, match=r"was begun with other settings \(seed\); repeat those"):
        convert(asked(dense, recipe, whole.out, seed=1, resume=True))


def test_training_ends_by_the_clock_as_sparse_as_was_asked_for(dense: Path, text: Source, tmp_path: Path):
    """Far more tokens are asked for than the time allows; the density goes down over the steps that there are."""
    full = FullRecovery(
        tokens=50_000_000, batch_tokens=256, micro_tokens=256, evaluations=4000, target_sparsity=0.95
    )  # fmt: skip
    training = LocalRecovery(steps=2, batch_tokens=128, silenced_by="threshold")
    config = RelufyConfig(
        model=str(dense), out=tmp_path / "out", recover="full", data=(text,), tokens=2048, context=128,
        training=training, full=full, time_limit_s=6.0,
    )  # fmt: skip
    found = relufy(config)
    assert found.full is not None
    assert 0 < found.full.steps < full.steps
    assert found.full.evaluations[-1].step == found.full.steps
    assert sum(found.full.density) / len(found.full.density) < 0.08
    # it is resumed with whatever time there is then
    again = relufy(RelufyConfig(**{**vars(config), "out": tmp_path / "again", "time_limit_s": 5.0}))
    assert again.full is not None


def test_several_processes_of_torchrun_are_refused_before_one_of_them_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TsconvertError, match="start it without torchrun, or relufy alone with it"):
        convert(ConvertConfig(model="tiny-mistral", out=tmp_path / "out", budget_s=600))
    assert not list(tmp_path.iterdir())


def test_the_bent_cosine_is_that_of_the_steps_that_there_are():
    import math

    for step in range(0, 50, 7):
        short, long = (0.5 * (1 + math.cos(math.pi * step / steps)) for steps in (50, 200))
        assert long * bend(step, 200, 50) == pytest.approx(short)
    assert bend(10, 50, 200) == 1  # more time than tokens: the tokens' schedule


def test_a_finished_recipe_has_tokens_in_place_of_time_and_limits(tmp_path: Path, dense: Path):
    machine = Machine(bandwidth=1.0, cores=1, memory_bytes=1, flops=1.0, disk_bytes_per_s=1.0)
    steps = (
        Step(name="recover", line="relufy {model} --out sparse --recover full --full-tokens 90000 --time-limit 55s",
             time_s=1.0),
        Step(name="exact", line="eval sparse --tokens 1K --ctx 128", time_s=1.0),
        Step(name="speed", line="bench f.gguf", time_s=1.0, optional=True),
    )  # fmt: skip
    plan = Plan(model=str(dense), budget_s=60.0, machine=machine, steps=steps, why="")
    results = {
        "recover": {"full": {"tokens": 12_288}}, "exact": {"perplexity_ratio": 1.2, "mean_density": 0.1},
        "speed": {"left_out": True},
    }  # fmt: skip
    file = tmp_path / "recipe.toml"
    file.write_text(as_done("n", str(dense), plan, results))
    from tsconvert.evaluate.recipe.recipe import read_recipe

    read = read_recipe(file)
    assert [str(stage) for stage in read.stages] == [
        f"tsconvert relufy {dense.resolve()} --out sparse --recover full --full-tokens 12288",
        "tsconvert eval sparse --tokens 1K --ctx 128",
    ]
    assert {limit.figure: limit.maximum for limit in read.limits} == {
        "exact.perplexity_ratio": 1.26, "exact.mean_density": 0.105
    }  # fmt: skip


def test_the_time_of_a_killed_run_is_known_by_the_journal_s_age(tmp_path: Path):
    journal = tmp_path / "convert.json"
    clock = Clock(100.0)
    journal.write_text("{}")
    os.utime(journal, (clock.began + 30, clock.began + 30))
    assert spent(clock.state(), journal) == pytest.approx(130.0)
    assert Clock(130.0).spent_s >= 130.0
    assert clock.began <= time.time()


def test_the_journal_ages_while_stages_work_in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`--out` is mostly a relative path; a run that was killed would have the time of its stages once more."""
    monkeypatch.setattr(clock_module, "_BEAT_S", 0.01)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    journal = Path("out/convert.json")
    journal.write_text("{}")
    os.utime(journal, (1.0, 1.0))
    end_s = time.monotonic() + 20
    with Clock(0.0).beating(journal), chdir("out"):
        while (tmp_path / journal).stat().st_mtime == 1.0:
            assert time.monotonic() < end_s


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("relufy {sparse.gguf} --out x", "is a sparse model for running (run, serve, bench and eval take it)"),
        ("run {sparse} -p a", "is a checkpoint folder: relufy converts it, export-gguf makes a GGUF file of it"),
        ("relufy {it.dat} --out x", "is an importance matrix: export-gguf and quantize take it with --imatrix"),
        ("relufy {lora} --out x", "a LoRA adapter of org/base is there, not a model: merge it into its base model"),
        ("relufy {sparse/model.safetensors} --out x", "is one file of a checkpoint: give its folder"),
        ("relufy {r.toml} --out x", "is no model: convert --recipe and check take recipes, --data takes mixtures"),
        ("run {t.txt} -p a", "is text: --data takes it"),
        ("convert {sparse} --out x --budget 1h", "is drelu already; convert takes a dense model"),
    ],
)  # fmt: skip
def test_a_file_of_the_wrong_kind_names_the_command_that_takes_it(
    whole: ConvertReport, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, sentence: str
):
    from tsconvert import cli

    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    for name, content in (("it.dat", b"\1\0\0\0" * 20), ("r.toml", b"format = 1\n"), ("t.txt", b"some words " * 9)):
        (tmp_path / name).write_bytes(content)
    filled = []
    for word in words.split():
        inner = word.strip("{}")
        path = tmp_path / inner if (tmp_path / inner).exists() else whole.out / inner
        filled.append(str(path) if word.startswith("{") else str(tmp_path / word) if word.startswith("x") else word)
    with pytest.raises(SystemExit) as stop:
        cli.main(filled, prog_name="tsconvert")
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
