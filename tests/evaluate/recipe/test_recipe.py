"""Spec files that are wrong: one sentence with the file, the key, and what to do; nothing is run."""

import re
from pathlib import Path

import click
import pytest

from tsconvert import cli
from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.check.run import CheckConfig, check
from tsconvert.evaluate.recipe.recipe import LIMIT_KEYS, TOP_KEYS, read_recipe
from tsconvert.evaluate.records.json_path import figure

GOOD = """format = 1
[stages]
quality = "eval x.gguf"
[outputs]
file = "x.gguf"
[limits.quality]
perplexity.max = 9
"""


def sentence(tmp_path: Path, text: str, **options: object) -> str:
    spec = tmp_path / "s.toml"
    spec.write_text(text, encoding="utf-8")
    known = {"eval": ["--tokens", "--against"], "check": [], "export-gguf": ["--out"]}
    with pytest.raises(TsconvertError) as error:
        read_recipe(spec, options=known, **options)  # type: ignore[arg-type]
    assert error.value.exit_code == 2
    assert str(error.value).startswith(f"{spec}: ")
    return str(error.value).removeprefix(f"{spec}: ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("format = 1\n", "", "format is None; this tsconvert reads format = 1, so write that"),
        ("format = 1", "format = 2", "format is 2; this tsconvert reads format = 1, so write that"),
        ("format = 1", "format = 1\nlimit = 3", "the file has no key limit; did you mean limits?"),
        ("format = 1", "format = 1\nout = 3", "out is 3; make it a string"),
        ("[stages]", "stages = 3\n[x]", ("the file has no key x; choose one of format, name, out, baseline, variables,"
         " stages, outputs, limits")),
        ('"eval x.gguf"', "3", "stages.quality is 3; make it a command as you would type it, in one string"),
        ("eval x.gguf", "evl x.gguf", "stages.quality: 'evl' is no command of tsconvert; did you mean eval?"),
        ("eval x.gguf", "check x.toml", ("stages.quality: 'check' is no command of tsconvert; choose one of eval,"
         " export-gguf")),
        ("eval x.gguf", "eval x.gguf --tokns 4K", "stages.quality: eval has no option --tokns; did you mean --tokens?"),
        ("eval x.gguf", "eval 'x.gguf", "stages.quality: No closing quotation; close it"),
        ("eval x.gguf", "eval {modle}", "stages.quality: there is no variable modle; choose one of here"),
        ("quality =", "check =", "stages.check: a stage needs another name; use letters, digits, - and _, not check"),
        ('"x.gguf"\n', "7\n", "outputs.file must be a path under a name of its own; write it like that"),
        ("file =", "quality =", "outputs.quality must be a path under a name of its own; write it like that"),
        ("limits.quality", "limits.qualty", "limits.qualty: there is no stage or output qualty; did you mean quality?"),
        ("perplexity.max = 9", "perplexity = 9", ("limits.quality.perplexity is 9; write what it may be, such as"
         " { max = 9 }")),
        ("perplexity.max = 9", "perplexity.maxi = 9", "limits.quality.perplexity has no key maxi; did you mean max?"),
        ("perplexity.max = 9", "perplexity.max = '9X'", ("limits.quality.perplexity.max: '9X' is no number; write it"
         " like 4096, 64K, 1.5M or 5G")),
        ("perplexity.max = 9", "perplexity.max = true", ("limits.quality.perplexity.max is True; give a number, or a"
         " size such as '12M'")),
        ("perplexity.max = 9", "perplexity.why = 'so'", ("limits.quality.perplexity limits nothing; give it min, max,"
         " equal, same_as or drift")),
        ("perplexity.max = 9", "perplexity.drift = -1", ("limits.quality.perplexity.drift is -1; it is a share of the"
         " baseline, such as 0.02")),
        ("perplexity.max = 9", "perplexity = { max = 9, over = 'x.y' }", ("limits.quality.perplexity.over is 'x.y';"
         " name a figure as STAGE.KEY, of quality, file")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, old: str, new: str, expected: str):
    assert old in GOOD
    assert sentence(tmp_path, GOOD.replace(old, new)) == expected


def test_a_check_needs_limits_and_a_conversion_does_not(tmp_path: Path):
    spec = tmp_path / "s.toml"
    spec.write_text(GOOD.partition("[limits")[0])
    assert read_recipe(spec).limits == ()
    with pytest.raises(TsconvertError) as error:
        check(CheckConfig(spec=spec))
    assert str(error.value) == f"{spec}: limits is missing or empty; say what may come out, such as [limits.eval]"


def test_no_toml_and_no_file(tmp_path: Path):
    assert sentence(tmp_path, "format = ").startswith("is no TOML (Invalid value (at ")
    with pytest.raises(TsconvertError, match=r"none.toml: no such file; give a check file \(docs/check.md\)"):
        read_recipe(tmp_path / "none.toml")


def test_a_variable_that_the_spec_lacks(tmp_path: Path):
    text = GOOD + "[variables]\nmodel = 'a'\n"
    assert sentence(tmp_path, text, variables={"modle": "b"}) == "[variables] has no key modle; did you mean model?"


def test_variables_fill_stages_and_paths_and_keep_spaces_together(tmp_path: Path):
    text = GOOD.replace("eval x.gguf", "tsconvert eval {here}/{model} --tokens 4K").replace("'", '"')
    (tmp_path / "s.toml").write_text(f'{text}[variables]\nmodel = "a b.gguf"\n')
    spec = read_recipe(tmp_path / "s.toml", variables={"model": "c d.gguf"})
    assert spec.stages[0].arguments == ("eval", f"{tmp_path.resolve()}/c d.gguf", "--tokens", "4K")
    assert (spec.out, spec.outputs["file"]) == (tmp_path / "check-out", tmp_path / "check-out" / "x.gguf")
    assert spec.name == "s"


def test_a_drift_without_a_baseline_is_refused_before_anything_runs(capsys, tmp_path: Path):
    (tmp_path / "s.toml").write_text(GOOD.replace("max = 9", "drift = 0.1"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(tmp_path / "s.toml")], prog_name="tsconvert")
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: a drift needs a baseline: name its file in the spec (baseline) or with --baseline\n"
    )


ROOT = Path(__file__).parents[3]
CONTEXT = click.Context(cli.main)
KNOWN = {name: [option for param in cli.main.get_command(CONTEXT, name).params for option in (*param.opts,
         *param.secondary_opts)] for name in cli.COMMANDS}  # fmt: skip


@pytest.mark.parametrize("spec", list((ROOT / "examples" / "ci").glob("*.toml")))
def test_the_examples_are_right(spec: Path):
    assert read_recipe(spec, options=KNOWN).stages


def test_docs_check_md_describes_every_key_and_its_example_is_right(tmp_path: Path):
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    for key in (*TOP_KEYS, *LIMIT_KEYS):
        assert f"`{key}`" in page or f"`[{key}" in page or f"`{key}`," in page, key
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "s.toml").write_text(example)
    spec = read_recipe(tmp_path / "s.toml", options=KNOWN)
    assert [limit.figure for limit in spec.limits] == [
        "quality.perplexity_ratio", "quality.kl_mean", "quality.mean_density", "file.size_bytes"
    ]  # fmt: skip


RESULT = {
    "rows": [{"mode": "dense", "speed": 2.0}, {"mode": "exact", "speed": 4.0}], "density": [0.1, 0.3], "passed": True,
    "empty": [], "none": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rows.exact.speed", 4.0),
        ("rows.1.speed", 4.0),
        ("rows.speed", [2.0, 4.0]),
        ("rows.speed.mean", 3.0),
        ("rows.count", 2),
        ("density.max", 0.3),
        ("density.min", 0.1),
        ("density.sum", 0.4),
        ("passed", True),
    ],
)
def test_a_figure_is_found_by_its_path(path: str, value: object):
    assert figure(RESULT, path.split(".")) == value


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("perplexity", "no perplexity in the result, which has rows, density, passed, empty"),
        ("rows.predicted.speed", "no predicted in rows, which has 2 entries, mode, speed"),
        ("density.5", "no 5 in density, which has 2 entries"),
        ("empty.mean", "no mean in empty, which has 0 entries"),
        ("none", "no none in the result, which has rows, density, passed, empty"),
        ("passed.x", "no x in passed, which has the value True and nothing below it"),
    ],
)
def test_a_figure_that_is_not_there_names_what_is(path: str, problem: str):
    with pytest.raises(TsconvertError) as error:
        figure(RESULT, path.split("."))
    assert str(error.value) == problem
