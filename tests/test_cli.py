"""The command line as scripts see it: names, exit codes, sentences."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

from tsconvert import cli

COMMANDS = [
    "relufy", "profile", "predictors", "imatrix", "export-gguf", "quantize", "run", "bench", "eval", "verify", "check",
    "inspect", "plan", "report", "demo",
]  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    try:
        cli.main([str(argument) for argument in arguments], prog_name="tsconvert")
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_command_is_there_in_the_order_of_the_chain(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    listed = [line.split()[0] for line in out.split("Commands:\n")[1].splitlines() if line.strip()]
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_json_and_debug(capsys, command: str):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: tsconvert {command} ")
    assert "--json" in out
    assert "--debug" in out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("relufy", ["--out", "--activation", "--recover", "--data", "--tokens", "--target-sparsity", "--teacher",
                    "--align", "--dtype", "--max-shard-size", "--device", "--seed", "--resume", "--dry-run"]),
        ("profile", ["--data", "--tokens", "--out", "--powerinfer-dir"]),
        ("predictors", ["--data", "--tokens", "--out", "--rank", "--target-energy", "--max-density"]),
        ("export-gguf", ["--out", "--type", "--target", "--predictors", "--tensor-type", "--metadata", "--pre",
                         "--dry-run", "--profile", "--no-order", "--no-verify"]),
        ("verify", ["--predictors", "--no-logits"]),
        ("run", ["-p", "-n", "--sparsity", "-t", "-c", "--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty",
                 "--seed", "--chat", "--stats"]),
        ("bench", ["-p", "-n", "-r", "-t", "--sparsity"]),
        ("eval", ["--data", "--ctx", "--tokens", "--chunks", "--method", "--stride", "--sparsity", "--against",
                  "--save-logits", "--tasks"]),
        ("plan", ["--type", "--density", "--rank", "--batch", "--bandwidth", "--cores", "--memory", "--measure"]),
        ("check", ["--out", "--set", "--resume", "--junit", "--baseline", "--update-baseline"]),
        ("inspect", ["--tensors"]),
        ("demo", ["--out", "--model"]),
    ],
)  # fmt: skip
def test_the_options_that_scripts_count_on(command: str, options: list[str]):
    known = {name for option in cli.main.commands[command].params for name in (*option.opts, *option.secondary_opts)}
    assert set(options) <= known


def test_full_recovery(capsys, dense: Path, tmp_path: Path):
    few = ["--tokens", "2K", "--context", "128", "--steps", "2", "--full-tokens", "1K", "--full-batch-tokens", "512"]
    few += ["--micro-tokens", "256", "--evaluations", "1"]
    code, out, err = call(capsys, "relufy", dense, "--out", tmp_path / "o", "--recover", "full", *few, "--json")
    assert code == 0, err
    assert json.loads(out)["full"]["steps"] == 2


def test_json_is_all_there_is_on_stdout(capsys, dense: Path, tmp_path: Path):
    code, out, _ = call(capsys, "relufy", dense, "--out", tmp_path / "o", "--recover", "none", "--no-align", "--json")
    assert code == 0
    assert json.loads(out)["out"] == str(tmp_path / "o")


@pytest.fixture
def broken(dense: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dense, tmp_path / "model"))


def refusal(capsys, model: Path, out: Path, *options: object) -> str:
    code, stdout, err = call(capsys, "relufy", model, "--out", out, *options)
    assert (code, stdout) == (2, "")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("error: ").removesuffix("\n")


def test_a_missing_shard(capsys, make_checkpoint, tmp_path: Path):
    model = Path(shutil.copytree(make_checkpoint("mistral", max_shard="500KB"), tmp_path / "m"))
    shard = sorted(model.glob("model-*.safetensors"))[0]
    shard.unlink()
    assert refusal(capsys, model, tmp_path / "o") == (
        f"{shard}: shard is missing (named in model.safetensors.index.json); download it again"
    )


def test_a_truncated_file(capsys, broken: Path, tmp_path: Path):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert refusal(capsys, broken, tmp_path / "o").startswith(f"{file}: cut off, tensor model.layers.1.")


def test_an_architecture_that_is_not_known(capsys, broken: Path, tmp_path: Path):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert refusal(capsys, broken, tmp_path / "o") == (
        f"{broken / 'config.json'}: model_type is 'gpt2'; tsconvert converts llama, mistral, mixtral,"
        " turbosparse_llama, turbosparse_mistral, turbosparse_mixtral, bamboo, so choose one of those"
    )


def test_another_hidden_act(capsys, broken: Path, tmp_path: Path):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert refusal(capsys, broken, tmp_path / "o") == (
        f"{broken / 'config.json'}: hidden_act is 'gelu'; tsconvert replaces SwiGLU, so the model must have hidden_act"
        " 'silu'"
    )


def test_an_output_folder_that_exists(capsys, dense: Path, tmp_path: Path):
    (tmp_path / "o").mkdir()
    assert refusal(capsys, dense, tmp_path / "o") == (
        f"{tmp_path / 'o'}: exists already; choose another --out or remove it first"
    )


def test_a_tokenizer_that_is_missing(capsys, broken: Path, tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (broken / name).unlink()
    assert refusal(capsys, broken, tmp_path / "o") == (
        f"{broken}: no tokenizer (tokenizer.json or tokenizer.model); copy the model's own there"
    )


def test_debug_shows_the_traceback(broken: Path, tmp_path: Path):
    (broken / "config.json").unlink()
    with pytest.raises(Exception, match=r"no config\.json"):
        cli.main(["relufy", str(broken), "--out", str(tmp_path / "o"), "--debug"])


def test_usage_errors_exit_2(capsys):
    code, _, err = call(capsys, "relufy", "x", "--out", "y", "--tokens", "many")
    assert code == 2
    assert "'many' is no number; write it like 4096, 64K, 1.5M or 5G" in err


def test_an_interrupt_exits_130(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "invoke", interrupted)
    assert call(capsys, "plan")[0] == 130


def test_python_m_tsconvert_is_the_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tsconvert", "--version"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.startswith("tsconvert, version ")


INTERRUPTED_IMPORT = """
import runpy, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupts())
runpy.run_module("tsconvert", run_name="__main__")
"""


def test_an_interrupt_before_the_command_line_is_imported(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_the_script_that_is_installed_is_python_m_tsconvert():
    assert [script.value for script in entry_points(group="console_scripts", name="tsconvert")] == [
        "tsconvert.__main__:main"
    ]
