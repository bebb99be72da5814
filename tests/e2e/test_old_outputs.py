"""Outputs and interrupted runs of an earlier tsconvert: today's reads, runs, exports and finishes them.

old_outputs/README.md says what there is and how it was made.

    python tests/e2e/test_old_outputs.py --write late both    # what finishing these runs gives today is now right
"""

import argparse
import json
import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).with_name("old_outputs")
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
RUNS: dict[str, dict[str, Any]] = EXPECTED["interrupted"]
TEXT = "--tokens 1K --ctx 128"
OF_THE_SPARSE_MODEL = ["sparse.gguf", "powerinfer.gguf"]


def unpack(folder: Path) -> Path:
    """Where the outputs lie, in ``folder``."""
    with tarfile.open(HERE / "old_outputs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "old"


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture
def old(unpacked: Path, tmp_path: Path) -> Path:
    """A copy, for its paths are relative: every command is to run in it."""
    return Path(shutil.copytree(unpacked, tmp_path / "old"))


@pytest.fixture
def call(command_line: Any, old: Path):
    """What a command prints with --json, started in the copy."""
    return lambda words: command_line(shlex.split(words), old)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("dense", "mistral checkpoint"),
        ("sparse", "mistral checkpoint"),
        ("predictors", "predictors"),
        ("sparse.gguf", "GGUF file, turbosparse"),
        ("powerinfer.gguf", "PowerInfer GGUF file, bamboo"),
        ("profile.safetensors", "profile"),
        ("imatrix.gguf", "importance matrix"),
        ("logits.safetensors", "reference logits"),
    ],
)
def test_inspect_finds_every_output_whole(call, path: str, kind: str):
    found = call(f"inspect {path}")
    assert (found["kind"], found["whole"]) == (kind, True)


@pytest.mark.parametrize(
    ("path", "layers"), [("local.partial", 1), ("joint.partial", 1), ("early.local.partial", 1), ("late.partial", 0)]
)
def test_inspect_knows_what_is_unfinished(call, path: str, layers: int):
    found = call(f"inspect {path}")
    assert (found["kind"], found["whole"]) == ("unfinished output", False)
    assert found["state"] == f"{layers} layers are finished; go on with --resume"


@pytest.mark.parametrize("words", EXPECTED["answers"])
def test_files_give_the_same_answers(call, words: str):
    assert " ".join(map(str, call(words)["tokens"])) == EXPECTED["answers"][words]


@pytest.mark.parametrize("file", OF_THE_SPARSE_MODEL)
def test_files_and_the_checkpoint_are_equally_good(call, file: str):
    whole = call(f"eval sparse {TEXT}")
    dense, exact, predicted = (
        call(f"eval {file} {TEXT} -t 1 --sparsity {mode}") for mode in ("dense", "exact", "predicted")
    )
    assert dense["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-3)
    assert exact["perplexity"] == pytest.approx(dense["perplexity"], rel=1e-5)
    assert predicted["perplexity"] == pytest.approx(exact["perplexity"], rel=0.05)
    assert predicted["predicted_density"] == pytest.approx([0.483, 0.457], abs=0.01)


def test_kept_predictions_are_those_of_the_model(call):
    found = call("eval dense --against logits.safetensors")
    assert found["top1_agreement"] == 1
    assert abs(found["kl_mean"]) < 1e-5


@pytest.mark.parametrize("file", OF_THE_SPARSE_MODEL)
def test_files_are_verified_against_their_checkpoint(call, file: str):
    assert call(f"verify sparse {file} --predictors predictors")["passed"]


@pytest.mark.parametrize(("file", "target"), [("sparse.gguf", "sparse"), ("powerinfer.gguf", "powerinfer")])
def test_an_export_of_the_old_model_has_the_old_bytes(call, old: Path, of_outputs: Any, file: str, target: str):
    (old / "new").mkdir()
    call(f"export-gguf sparse --predictors predictors --target {target} --out new/{file} -t 1 --no-verify")
    new = of_outputs.digests(old / "new")
    for part in (f"{file}: tensors", f"{file}: keys"):
        assert new[part] == of_outputs.digests(old)[part]


def test_an_export_takes_the_old_profile_and_importance_matrix(call):
    found = call("export-gguf sparse --profile profile.safetensors --imatrix imatrix.gguf --type Q4_K_M --out new.gguf")
    assert found["verification"]["passed"]
    assert call("inspect new.gguf")["whole"]


def test_predictors_go_on_from_the_old_ones(call):
    found = call("predictors sparse --from predictors --out new --tokens 2K --context 128 --steps 4")
    assert [ffn["rank"] for ffn in found["ffns"]] == [8, 8]


def test_a_report_reads_all_of_them(call, old: Path):
    call("report . --out page.html")
    page = (old / "page.html").read_text(encoding="utf-8")
    for name in ("sparse", "predictors", *OF_THE_SPARSE_MODEL, "profile.safetensors", "imatrix.gguf"):
        assert f">{name}<" in page


def test_a_check_takes_over_the_stages_of_the_old_one(command_line: Any, old: Path):
    before = (old / "checked" / "tried.json").read_bytes()
    code, printed, said = command_line.run(["check", "old.check.toml", "--resume"], old)
    assert code == 0, said
    assert printed.count("(from before)") == 2
    assert printed.endswith("old: 4 of 4 passed\n")
    assert (old / "checked" / "tried.json").read_bytes() == before


def resumed(name: str) -> str:
    """The command that finishes a run, with what was its default when it began and is another one now."""
    command = RUNS[name]["command"]
    more = " --silenced-by l1" if "--target-sparsity" in command else ""
    if "--recover full" in command:
        more += " --cross-entropy 1"
    if "predictors" in command and "--stored-as" not in command:
        more += " --stored-as F16"
    return f"{command}{more} --resume"


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_is_finished(call, old: Path, of_outputs: Any, name: str):
    call(resumed(name))
    report, digests = of_outputs.outcome(old, name)
    for figure, value in RUNS[name]["report"].items():
        assert report[figure] == pytest.approx(value, rel=0.02)
    for machine, wanted in RUNS[name]["digests"].items():
        assert list(digests) == list(wanted)
        if machine == of_outputs.machine():  # elsewhere a training's last bits differ
            assert digests == wanted
    left = [path.name for path in old.iterdir() if path.name.startswith(name) and path.is_dir()]
    assert sorted(left) == sorted({part.split("/")[0] for part in digests})


@pytest.mark.parametrize("name", ["local", "joint"])
def test_finished_layers_are_taken_from_the_journal(call, old: Path, name: str):
    """A figure that no training gives is put into the journal: the report has it."""
    journal = old / f"{name}.partial" / "journal.jsonl"
    head, layer = (json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())
    layer["result"]["error_before"] = 123.0
    journal.write_text("".join(json.dumps(line) + "\n" for line in (head, layer)), encoding="utf-8")
    found = call(resumed(name))
    assert [layer["error_before"] == 123.0 for layer in found["layers"]] == [True, False]


def test_finished_predictors_are_taken_from_what_was_kept(call, old: Path):
    kept = old / "late.partial" / "predictors-00000.kept"
    content = kept.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    reports = json.loads(header["__metadata__"]["reports"])
    reports[0][0]["precision"] = 123.0
    header["__metadata__"]["reports"] = json.dumps(reports)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    kept.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    found = call(resumed("late"))
    assert [ffn["precision"] == 123.0 for ffn in found["ffns"]] == [True, False]


@pytest.mark.parametrize("name", ["full", "both"])
def test_the_whole_models_training_goes_on_from_its_checkpoint(command_line: Any, old: Path, name: str):
    code, _, said = command_line.run(shlex.split(resumed(name)), old)
    assert code == 0, said
    assert "going on from step 2\n" in said


@pytest.mark.parametrize(
    ("name", "folder", "option"),
    [
        ("local", "local.partial", "--steps 5"),
        ("joint", "joint.partial", "--target-sparsity 0.7"),
        ("late", "late.partial", "--learning-rate 0.01"),
        ("searched", "searched.partial", "--target-energy 0.9"),
        ("early", "early.full", "--evaluations 4"),
        ("full", "full.full", "--full-tokens 2K"),
        ("both", "both.full", "--seed 1"),
    ],
)
def test_other_settings_are_refused(command_line: Any, old: Path, name: str, folder: str, option: str):
    code, printed, said = command_line.run(shlex.split(f"{RUNS[name]['command']} {option} --resume"), old)
    assert (code, printed) == (2, "")
    assert said == f"error: {folder}: was begun with other settings or another model; remove it or repeat those\n"


def main() -> None:
    """Finish some of the interrupted runs, and write what that gives as what is expected."""
    import conftest  # beside this file; as a test it comes by fixtures

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", nargs="+", choices=list(RUNS), required=True)
    options = parser.parse_args()
    with conftest.CommandLine() as command_line, tempfile.TemporaryDirectory(prefix="old-outputs-") as folder:
        old = unpack(Path(folder))
        for name in options.write:
            command_line(shlex.split(resumed(name)), old)
            report, RUNS[name]["digests"][conftest.machine()] = conftest.outcome(old, name)
            RUNS[name]["report"] = {figure: report[figure] for figure in RUNS[name]["report"]}
    (HERE / "expected.json").write_text(json.dumps(EXPECTED, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
