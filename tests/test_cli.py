"""The command line as scripts see it: names, exit codes, sentences."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

from tsconvert import cli

# Every command with its options, in the order of the chain; scripts count on these names.
SURFACE = {
    "convert": "--out --budget --recipe --set --resume --dry-run --activation --target-sparsity --up-passes --type"
    " --predictors --no-predictors --data --judge --seed",
    "relufy": "--out --dtype --max-shard-size --resume --dry-run --activation --align --no-align --recover --teacher"
    " --target-sparsity --shift --data --tokens --context --steps --batch-tokens --learning-rate --attention"
    " --no-attention --min-expert-tokens --full-tokens --full-batch-tokens --micro-tokens --full-learning-rate"
    " --cross-entropy --divergence --hidden --top-logits --chat --stream --baseline --evaluations --patience"
    " --checkpointing --train-embeddings --report-to --predictors --from-predictors --masked-share --rank"
    " --attention-share --silenced-by --up-passes --likeliest --time-limit"
    " --target-energy --stored-as --precision --device --seed",
    "profile": "--out --powerinfer-dir --data --tokens --context --device --seed",
    "predictors": "--out --estimate --resume --dry-run --data --tokens --context --rank --target-energy --max-loss"
    " --max-density --budget --everywhere --where-it-pays --from --stored-as --model-bits --steps --batch-tokens"
    " --learning-rate --precision --device --seed",
    "imatrix": "--out --show-statistics --data --tokens --context --slopes --resume --device --seed",
    "export-gguf": "--out --target --modelfile --split-max-size --verify --no-verify --dry-run --type --pure"
    " --tensor-type --output-tensor-type --token-embedding-type --imatrix --target-size --target-bits"
    " --target-bytes-a-token --data"
    " --density --candidate --recipe --predictors --predictor-type --separate-predictors --attention-share --profile"
    " --order --no-order --vram --name --metadata --pre -t --threads",
    "quantize": "--out --split-max-size --dry-run --type --pure --tensor-type --output-tensor-type"
    " --token-embedding-type --imatrix --allow-requantize --target-size --target-bits --target-bytes-a-token --data"
    " --density --candidate --recipe -t --threads",
    "run": "-p --prompt --chat --system -n --tokens --stop --ignore-eos --temp --top-k --top-p --min-p"
    " --repeat-penalty --repeat-last-n --seed --sparsity -c --context -t --threads --stats --audit",
    "serve": "--host --port --api-key --queue --sparsity -c --context -t --threads",
    "bench": "-p --prompt -n --tokens -r --repetitions --sparsity -t --threads --shape --density --predicted --rank"
    " --type --predictor-type",
    "eval": "--data --ctx --tokens --chunks --method --parse-special --no-parse-special --stride --against"
    " --save-logits --top --baseline --tasks --task-folder --limit --sparsity -t --threads",
    "verify": "--predictors --logits --no-logits",
    "check": "--out --set --resume --junit --baseline --update-baseline",
    "inspect": "--tensors",
    "plan": "--type --density --predicted --rank --tokens --batch --ctx --bandwidth --cores --memory --gflops --disk"
    " --disk-speed --measure",
    "report": "--out",
    "demo": "--model --out --resume",
}


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


def command_of(name: str) -> click.Command:
    return cli.main.get_command(click.Context(cli.main), name)


def test_every_command_is_there_in_the_order_of_the_chain_with_a_whole_sentence(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    listed = " ".join(out.split("Commands:\n")[1].split())
    assert listed == " ".join(f"{name} {cli.COMMANDS[name][1]}" for name in SURFACE)
    assert all(sentence.endswith(".") for _, sentence in cli.COMMANDS.values())


@pytest.mark.parametrize("command", SURFACE)
def test_the_list_says_what_the_command_itself_says_first(command: str):
    assert command_of(command).help.splitlines()[0] == cli.COMMANDS[command][1]
    assert command_of(command).name == command


@pytest.mark.parametrize("command", SURFACE)
def test_the_options_that_scripts_count_on(command: str):
    options = [param for param in command_of(command).params if isinstance(param, click.Option)]
    names = [name for option in options for name in (*option.opts, *option.secondary_opts)]
    assert sorted(names) == sorted([*SURFACE[command].split(), "--json", "--debug"])


@pytest.mark.parametrize("command", SURFACE)
def test_help_stands_under_headings_and_imports_nothing_heavy(command: str):
    code = f"""
import sys
from tsconvert.cli import main
try:
    main([{command!r}, "--help"], prog_name="tsconvert")
except SystemExit as stop:
    assert not stop.code
heavy = {{"torch", "transformers", "numpy", "numba", "gguf", "rich", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Usage: tsconvert {command} ")
    assert max(map(len, lines)) <= 80
    headings = [line for line in lines if re.fullmatch(r"[A-Z][^.]*:", line)]
    assert headings[-1] == "General:"
    assert "Other options:" not in headings
    assert len(headings) >= 2


def test_without_arguments_it_says_the_three_things_that_one_can_do(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    shown = [line.strip() for line in out.splitlines() if " tsconvert " in line]
    assert [re.search(r"tsconvert (\w+)", line)[1] for line in shown] == ["convert", "run", "demo"]
    for line in shown:
        words = shlex.split(re.sub(r"\s{2,}\(.*", "", line[line.index("tsconvert ") :]))
        with command_of(words[1]).make_context(words[1], words[2:]) as context:
            assert context.params


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
    said = refusal(capsys, broken, tmp_path / "o")
    known = f"{broken / 'config.json'}: model_type is 'gpt2'; tsconvert converts llama, mistral, mixtral,"
    assert said.startswith(known)


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
        f"{broken}: no tokenizer (tokenizer.json, tokenizer.model or tekken.json); copy the model's own there"
    )


def test_debug_shows_the_traceback(broken: Path, tmp_path: Path):
    (broken / "config.json").unlink()
    with pytest.raises(Exception, match=r"no config\.json"):
        cli.main(["relufy", str(broken), "--out", str(tmp_path / "o"), "--debug"])


def test_usage_errors_exit_2(capsys):
    code, _, err = call(capsys, "relufy", "x", "--out", "y", "--tokens", "many")
    assert code == 2
    assert "'many' is no number; write it like 4096, 64K, 1.5M or 5G" in err


def test_a_name_that_is_nearly_right_is_told(capsys):
    assert "No such command 'relufi'. Did you mean relufy?" in call(capsys, "relufi")[2]
    code, _, err = call(capsys, "inspect", "x", "--tensor")
    assert code == 2
    assert "--tensors" in err


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
import runpy, signal, sys, threading

class Dies:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            {interrupt}

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupts())
runpy.run_module("tsconvert", run_name="__main__")
"""


@pytest.mark.parametrize(
    "interrupt",
    ["signal.raise_signal(signal.SIGINT)", "Dies(); threading.Event().wait(60)"],
    ids=["at once", "in a destructor, where Python drops it"],
)
def test_an_interrupt_before_the_command_line_is_imported(tmp_path: Path, interrupt: str):
    program = INTERRUPTED_IMPORT.format(interrupt=interrupt)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_the_script_that_is_installed_is_python_m_tsconvert():
    assert [script.value for script in entry_points(group="console_scripts", name="tsconvert")] == [
        "tsconvert.__main__:main"
    ]


@pytest.mark.parametrize("words", [["--help"], ["inspect", "tiny-mistral", "--tensors"]])
def test_a_closed_pipe_is_no_failure(words: list[str]):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "tsconvert", *words], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_closed_streams_are_empty_ones():
    command = shlex.join([sys.executable, "-m", "tsconvert", "inspect", "tiny-mistral"])
    assert subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"]).returncode == 0


def test_what_the_encoding_of_stdout_lacks_is_a_question_mark():
    code = "from tsconvert.cli import _open_streams; _open_streams(); print('中a')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout.split() == [b"?a"]


def test_a_seed_below_zero_is_a_usage_error(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    code, _, told = call(capsys, "relufy", "tiny-mistral", "--out", tmp_path / "out", "--seed", "-1")
    assert code == 2
    assert "Invalid value for '--seed': -1 is not in the range" in told
