"""check: each limit judged by itself, the lines that fail and no other, JUnit, annotations, baselines, resuming."""

import json
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import xmlschema

from tsconvert import cli
from tsconvert.common.errors import CheckFailedError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.check.run import CheckConfig, CheckReport, check
from tsconvert.evaluate.recipe.own_process import _follow
from tsconvert.evaluate.records.outputs import read_record
from tsconvert.quant.export import ExportConfig, export_unverified

SCHEMA = Path(__file__).with_name("junit.xsd")
OUTPUTS = 'format = 1\nout = "."\n[outputs]\nsparse = "sparse"\nfile = "sparse.gguf"\n[limits]\n'


@pytest.fixture(scope="module")
def finished(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sparse checkpoint and its GGUF file."""
    folder = tmp_path_factory.mktemp("finished")
    relufy(RelufyConfig(model=str(dense), out=folder / "sparse", tokens=2048, context=128, recover="none"))
    export_unverified(ExportConfig(model=folder / "sparse", out=folder / "sparse.gguf"))
    return folder


@pytest.fixture
def outputs(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "outputs"))


def checked(folder: Path, limits: str, *, head: str = OUTPUTS, **options: object) -> CheckReport:
    """The report of a spec that lies in ``folder``."""
    spec = folder / "some.check.toml"
    spec.write_text(head + limits, encoding="utf-8")
    return check(CheckConfig(spec=spec, **options))  # type: ignore[arg-type]


def failures(report: CheckReport) -> list[tuple[str, str]]:
    return [(line.what, line.problem) for line in report.failed]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("file.size_bytes.max = '10M'", []),
        ("file.size_bytes.max = '1K'", [("file.size_bytes", "is SIZE, must be at most 1,000")]),
        ("file.size_bytes = { min = '10M', why = 'it holds a model' }",
         [("file.size_bytes", "is SIZE, must be at least 10,000,000 (it holds a model)")]),
        ("file.architecture.equal = 'turbosparse'", []),
        ("file.architecture.equal = 'llama'", [("file.architecture", "is turbosparse, must be llama")]),
        ("sparse.layers.density.max = 0.9", []),
        ("sparse.layers.density.mean.min = 0.9", [("sparse.layers.density.mean", "is MEAN, must be at least 0.9")]),
        ("sparse.perplexity = { max = 100, over = 'sparse.dense_perplexity' }", []),
        ("file.size_bytes = { max = 0.5, over = 'sparse.size_bytes' }",
         [("file.size_bytes / sparse.size_bytes", "is RATIO, must be at most 0.5")]),
        ("file.tensor_count.same_as = 'sparse.tokens'",
         [("file.tensor_count", "is not that of sparse.tokens: COUNT, there 2,048")]),
        ("file.types.F16.min = 1", []),
        ("sparse.perplexty.max = 9", [("sparse.perplexty", "no perplexty in the result, which has CHOICES")]),
        ("file.magic.max = 9",
         [("file.magic", "is GGUF, no number that could be held to a limit; give equal in place of min and max")]),
    ],
)  # fmt: skip
def test_a_limit(finished: Path, limits: str, expected: list[tuple[str, str]]):
    report = checked(finished, limits)
    record = json.loads((finished / "sparse" / "tsconvert.json").read_text())["report"]
    size = (finished / "sparse.gguf").stat().st_size
    values = {
        "SIZE": f"{size:,}",
        "COUNT": "21",
        "MEAN": f"{sum(layer['density'] for layer in record['layers']) / 2:.5g}",
        "RATIO": f"{size / record['size_bytes']:.5g}",
        "CHOICES": ", ".join(
            key for key, value in read_record(finished / "sparse").figures.items() if value is not None
        ),
    }
    for name, value in values.items():
        expected = [(what, problem.replace(name, value)) for what, problem in expected]
    assert failures(report) == expected


def test_one_tight_threshold_fails_with_exactly_that_line_and_exit_code_1(capsys, outputs: Path):
    (outputs / "s.toml").write_text(
        OUTPUTS + "file.size_bytes.max = '10M'\nfile.tensor_count.max = 3\nsparse.tokens.min = 1\n"
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", str(outputs / "s.toml")], prog_name="tsconvert")
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert captured.err == (
        f"error: {outputs / 's.toml'}: 1 of 3 lines failed:\n  file.tensor_count is 21, must be at most 3\n"
    )
    assert [row.split()[:2] for row in captured.out.splitlines()] == [
        ["ok", "file.size_bytes"], ["FAIL", "file.tensor_count"], ["ok", "sparse.tokens"], ["s:", "2"]
    ]  # fmt: skip


def test_json_is_one_object_with_every_line(capsys, outputs: Path):
    (outputs / "s.toml").write_text(OUTPUTS + "file.tensor_count.max = 3\nsparse.tokens.min = 1\n")
    with pytest.raises(SystemExit):
        cli.main(["check", str(outputs / "s.toml"), "--json"], prog_name="tsconvert")
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], [line["status"] for line in found["lines"]]) == (False, ["failed", "passed"])
    assert found["lines"][0]["key"] == ["limits", "file", "tensor_count"]


def test_a_missing_output_fails_and_its_limits_are_not_known(outputs: Path):
    (outputs / "sparse.gguf").unlink()
    report = checked(outputs, "file.size_bytes.max = 9\nsparse.tokens.min = 1\n")
    where = outputs / "sparse.gguf"
    assert failures(report) == [("output file", f"{where}: is not there; run the stage that makes it first")]
    assert [line.status for line in report.lines] == ["failed", "skipped", "passed"]


def test_a_cut_off_file_fails(outputs: Path):
    whole = (outputs / "sparse.gguf").read_bytes()
    (outputs / "sparse.gguf").write_bytes(whole[:-1000])
    ((what, problem),) = failures(checked(outputs, "sparse.tokens.min = 1\n"))
    assert what == "output file"
    assert problem.startswith(f"{outputs / 'sparse.gguf'}: cut off, tensor ")


def test_junit_is_valid_and_says_what_failed(outputs: Path):
    (outputs / "sparse.gguf").unlink()
    limits = "sparse.tokens.max = 9\nsparse.layers.min = 1\nfile.size_bytes.max = 9\n"
    report = checked(outputs, limits, junit=outputs / "new" / "check.xml")
    xmlschema.XMLSchema(SCHEMA).validate(outputs / "new" / "check.xml")
    suite = Xml.parse(outputs / "new" / "check.xml").getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4", "failures": "3", "errors": "0", "skipped": "1"
    }  # fmt: skip
    failed = {case.get("name"): case[0].get("message") for case in suite.iter("testcase") if len(case)}
    assert failed["sparse.tokens"] == "sparse.tokens is 2,048, must be at most 9"
    assert report.spec.line(("limits", "sparse", "tokens")) == 7
    assert f"{report.spec.path}:7\n" in (suite.find(".//testcase[@name='sparse.tokens']/failure").text or "")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (('tests="1"', ""), "tests"),
        (("<properties", "<property"), "propert"),
        (('time="0.000"', 'time="0.00012"'), "time"),
    ],
)
def test_the_schema_finds_what_ci_systems_refuse(outputs: Path, change: tuple[str, str], what: str):
    checked(outputs, "sparse.tokens.min = 1\n", junit=outputs / "check.xml")
    text = (outputs / "check.xml").read_text()
    schema = xmlschema.XMLSchema(SCHEMA)
    schema.validate(text)
    assert change[0] in text
    with pytest.raises(xmlschema.XMLSchemaException, match=what):
        schema.validate(text.replace(*change))


def test_github_sees_an_error_at_the_line_of_the_spec(capsys, monkeypatch, outputs: Path):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    checked(outputs, "sparse.tokens.max = 9\nfile.size_bytes.max = '10M'\n")
    path = outputs / "some.check.toml"
    assert capsys.readouterr().err == (
        f"::error file={path},line=7,title=tsconvert check%3A sparse.tokens::"
        "sparse.tokens is 2,048, must be at most 9\n"
    )


def test_the_line_of_a_key_is_found_however_it_is_written(outputs: Path):
    text = (
        "[limits.sparse]\n# tokens\n'tokens' = { min = 1 }\nlayers.density.max = 1\n[limits.file]\nsize_bytes.min = 1\n"
    )
    spec = checked(outputs, text, head=OUTPUTS.replace("[limits]\n", "")).spec
    assert [spec.line(limit.key) for limit in spec.limits] == [8, 9, 11]
    assert spec.line(("outputs", "file")) == 5
    assert spec.line(("nothing",)) == 1


def baseline(outputs: Path, limits: str, **options: object) -> CheckReport:
    return checked(outputs, limits, baseline=outputs / "base.json", **options)


@pytest.mark.parametrize(
    ("limit", "base", "problem"),
    [
        ("drift = 0.1", 1900, ""),
        ("drift = 0.1", 1800, "is 2048, +13.78% from the baseline's 1800, where 0.1 of it is allowed"),
        ("drift = 0.1", 2500, "is 2048, -18.08% from the baseline's 2500, where 0.1 of it is allowed"),
        ("drift = 0.1, max = 1e6", 2500, ""),
        ("drift = 0.1, min = 1", 1800, ""),
        ("drift = 0.1, min = 1", 2500, "is 2048, -18.08% from the baseline's 2500, where 0.1 of it is allowed"),
        ("drift = 0, max = 1e6", 2048, ""),
    ],
)
def test_drift_from_the_baseline(outputs: Path, limit: str, base: float, problem: str):
    head = {"format": "tsconvert check baseline", "format_version": 1}
    (outputs / "base.json").write_text(json.dumps(head | {"figures": {"sparse.tokens": base}}))
    assert failures(baseline(outputs, f"sparse.tokens = {{ {limit} }}\n")) == (
        [("sparse.tokens", problem)] if problem else []
    )


def test_a_baseline_is_written_when_all_passes_and_only_then(outputs: Path):
    limits = "sparse.tokens = { drift = 0.1 }\nsparse.layers.density.mean = { max = 1, drift = 0 }\n"
    ((what, problem), _) = failures(baseline(outputs, limits))
    assert what == "sparse.tokens"
    assert problem == f"is not in the baseline {outputs / 'base.json'}; write it with --update-baseline"
    baseline(outputs, limits + "file.size_bytes.max = 1\n", update_baseline=True)
    assert not (outputs / "base.json").exists()
    baseline(outputs, limits + "file.size_bytes.max = '10M'\n", update_baseline=True).require()
    figures = json.loads((outputs / "base.json").read_text())["figures"]
    assert list(figures) == ["sparse.layers.density.mean", "sparse.tokens"]
    baseline(outputs, limits).require()


STAGES = """format = 1
out = "run"
[variables]
model = "none"
[stages]
sparse = "relufy {model} --out sparse --recover none --no-align"
export = "tsconvert export-gguf sparse --out '{name}.gguf' --no-verify"
[limits.export]
size_bytes.max = "10M"
process.peak_bytes = { max = 1000, over = "export.size_bytes" }
"""


def test_stages_run_in_the_folder_and_are_taken_over_when_it_is_resumed(dense: Path, tmp_path: Path):
    head = STAGES.replace("[stages]", 'name = "a b"\n[stages]')
    given = {"model": str(dense)}
    report = checked(tmp_path, "", head=head, variables=given)
    assert failures(report) == []
    assert [line.what for line in report.lines] == [
        "stage sparse", "stage export", "export.size_bytes", "export.process.peak_bytes / export.size_bytes"
    ]  # fmt: skip
    assert (tmp_path / "run" / "a b.gguf").stat().st_size == json.loads((tmp_path / "run" / "export.json").read_text())[
        "size_bytes"
    ]
    assert report.stages[0].peak_bytes > 20e6
    assert report.stages[0].cpu_s > 0

    with pytest.raises(Exception, match=r"holds an earlier check; go on with --resume, remove it, or choose another"):
        checked(tmp_path, "", head=head, variables=given)
    (tmp_path / "run" / "a b.gguf").unlink()
    (tmp_path / "run" / "a b.gguf.md").unlink()
    (tmp_path / "run" / "export.json").unlink()
    again = checked(tmp_path, "", head=head, variables=given, resume=True)
    assert failures(again) == []
    assert [stage.reused for stage in again.stages] == [True, False]
    assert json.loads((tmp_path / "run" / "check.json").read_text())["passed"]


def test_a_stage_that_was_killed_is_run_anew(dense: Path, tmp_path: Path):
    given, run, head = {"model": str(dense)}, tmp_path / "run", STAGES.replace("{name}", "x")
    checked(tmp_path, "", head=head, variables=given)
    (run / "sparse").rename(run / "sparse.partial")
    (run / "sparse.partial" / "journal.jsonl").write_text('{}\n{"layer": 0}\n', encoding="utf-8")
    for name in ("sparse.json", "export.json", "x.gguf", "x.gguf.md"):
        (run / name).unlink()
    again = checked(tmp_path, "", head=head, variables=given, resume=True)
    assert failures(again) == []
    assert [stage.reused for stage in again.stages] == [False, False]
    assert not (run / "sparse.partial").exists()


def test_a_stage_that_cannot_work_ends_the_check_with_its_own_sentence(tmp_path: Path):
    report = checked(tmp_path, "", head=STAGES.replace("{name}", "x"), variables={"model": "/nowhere"})
    (line,) = report.failed
    assert line.what == "stage sparse"
    assert line.problem.startswith("ended with exit code 2: /nowhere: ")
    assert [entry.status for entry in report.lines] == ["failed", "skipped", "skipped", "skipped"]
    with pytest.raises(CheckFailedError, match="1 of 4 lines failed:\n  stage sparse ended with exit code 2: /nowhere"):
        report.require()


def test_a_stage_whose_own_check_failed_fails_and_its_figures_are_there(outputs: Path):
    (outputs / "bad").mkdir()
    head = 'format = 1\nout = "."\n[stages]\nverify = "verify sparse sparse.gguf --no-logits"\n[limits.verify]\n'
    raw = bytearray((outputs / "sparse.gguf").read_bytes())
    raw[-10_000] ^= 0x40
    (outputs / "sparse.gguf").write_bytes(raw)
    report = checked(outputs, "failures.count.max = 1\nkeys.min = 10\n", head=head)
    assert [(line.what, line.status) for line in report.lines] == [
        ("stage verify", "failed"), ("verify.failures.count", "passed"), ("verify.keys", "passed")
    ]  # fmt: skip
    assert report.failed[0].problem.startswith(
        "ended with exit code 1: sparse.gguf is not what sparse makes it: output.weight: 1 of "
    )


def test_a_stage_is_not_charged_with_the_memory_of_the_process_that_checks(tmp_path: Path):
    held = bytearray(400_000_000)
    held[::4096] = b"x" * len(held[::4096])
    command = [sys.executable, "-c", "import sys; a = bytearray(60_000_000); print(len(a)); sys.exit(3)"]
    printed, _, code, used = _follow(command, tmp_path)
    assert (printed, code) == (b"60000000\n", 3)
    assert 60e6 < used["peak_bytes"] < 120e6
    assert len(held) > used["peak_bytes"]
