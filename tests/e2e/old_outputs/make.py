"""Made old_outputs.tar.xz and expected.json, with the code of commit 2948ca1; kept to say how.

    PYTHONPATH=FOLDER_OF_THAT_COMMIT python tests/e2e/old_outputs/make.py

It names functions within that commit, to be killed behind them, so later code cannot run it.
"""

import io
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SHARED = runpy.run_path(str(HERE.parent / "conftest.py"))
LOCAL = "--tokens 2K --context 128 --steps 4 --batch-tokens 256 --precision f32 --target-sparsity 0.8"
FULL = f"{LOCAL} --recover full --full-tokens 1K --full-batch-tokens 256 --micro-tokens 256 --evaluations 2"
PREDICTORS = "--tokens 2K --context 128 --steps 10 --batch-tokens 256 --precision f32"

FINISHED = [
    f"relufy dense --out sparse --predictors predictors --rank 8 {LOCAL}",
    "export-gguf sparse --predictors predictors --out sparse.gguf -t 1",
    "export-gguf sparse --predictors predictors --out powerinfer.gguf --target powerinfer -t 1",
    "profile sparse --out profile.safetensors --tokens 1K --context 128",
    "imatrix sparse --out imatrix.gguf --tokens 1K --context 128",
    "eval dense --save-logits logits.safetensors --tokens 1K --ctx 128 --top 16",
    "check old.check.toml --update-baseline",
]
ANSWERS = [
    f"run {file} -p 'The people of the' -n 16 -t 1 --temp 0 --sparsity {mode}"
    for file in ("sparse.gguf", "powerinfer.gguf")
    for mode in ("dense", "exact", "predicted")
]
INTERRUPTED = {
    "local": (f"relufy dense --out local {LOCAL}", "journal"),
    "joint": (f"relufy dense --out joint --predictors joint-predictors --rank 8 {LOCAL}", "journal"),
    "late": (f"predictors sparse --out late --rank 8 {PREDICTORS}", "kept"),
    "searched": (f"predictors sparse --out searched --budget 0.06 {PREDICTORS}", "kept"),
    "early": (f"relufy dense --out early {FULL}", "journal"),
    "full": (f"relufy dense --out full {FULL}", "checkpoint"),
    "both": (f"relufy dense --out both --predictors both-predictors --rank 8 {FULL}", "checkpoint"),
}
"""Name -> command, and behind which function it was killed: `journal`, layer 0 was journalled; `kept`, its predictors
were kept; `checkpoint`, the trainer wrote its first one."""
CHECK = """format = 1
name = "old"
out = "checked"
baseline = "old.baseline.json"

[stages]
looked = "inspect ../sparse.gguf"
tried = "run ../sparse.gguf -p 'The people' -n 8 -t 1 --temp 0"

[limits.tried]
generated_tokens.equal = 8
bytes_per_token.drift = 0.5
"""


def dense_model(folder: Path) -> None:
    """A seeded random Mistral. Its embedding has two values only, and so needs little room in the archive."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from tsconvert import models

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=4096, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, sliding_window=None, tie_word_embeddings=True,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    embedding = model.get_input_embeddings().weight.data
    embedding.copy_(torch.randint(2, embedding.shape) * 0.5 - 0.25)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(models.folder("tiny-mistral") / name, folder / name)


def killed_behind(what: str) -> None:
    """Let this process be killed as by kill -9 once ``what`` has been written for the first time."""
    from tsconvert.convert.full_trainer import RecoveryTrainer
    from tsconvert.convert.journal import Journal
    from tsconvert.predictors.kept import Kept

    owner, name = {
        "journal": (Journal, "add"), "kept": (Kept, "save"), "checkpoint": (RecoveryTrainer, "_save_checkpoint")
    }[what]  # fmt: skip
    function = getattr(owner, name)

    def last(*args: object, **kwargs: object) -> None:
        function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, last)


def answer(words: str, folder: Path) -> str:
    """The tokens that a run gives."""
    return " ".join(map(str, json.loads(command(f"{words} --json", folder))["tokens"]))


def command(words: str, folder: Path, behind: str = "") -> str:
    """Run a command in a process of its own, on one thread; returns what it printed."""
    environment = {**os.environ, **SHARED["ONE_THREAD"], **SHARED["OFFLINE"]}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), behind, *shlex.split(words)], cwd=folder, env=environment,
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == (-signal.SIGKILL if behind else 0), f"{words}: {run.returncode} {run.stderr}"
    return run.stdout


def child(behind: str, words: list[str]) -> None:
    """What `command` runs."""
    import torch

    from tsconvert import cli

    torch.set_num_threads(1)
    if behind:
        killed_behind(behind)
    cli.main(words, prog_name="tsconvert")


def main() -> None:
    """Run all commands, and pack what they wrote."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory(prefix="old-outputs-") as work:
        old, whole = Path(work, "old"), Path(work, "whole")
        dense_model(old / "dense")
        (old / "old.check.toml").write_text(CHECK, encoding="utf-8")
        for words in FINISHED:
            command(words, old)
        shutil.copytree(old, whole)
        runs = {}
        for name, (words, behind) in INTERRUPTED.items():
            command(words, old, behind)
            command(words, whole)
            report, digests = SHARED["outcome"](whole, name)
            kept = {key: report[key] for key in ("perplexity", "perplexity_predicted") if report.get(key)}
            found = {SHARED["machine"](): digests}
            runs[name] = {"command": words, "killed_behind": behind, "report": kept, "digests": found}
        expected = {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "finished": FINISHED, "answers": {words: answer(words, old) for words in ANSWERS}, "interrupted": runs,
        }  # fmt: skip
        (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
        pack(old, HERE / "old_outputs.tar.xz")


def pack(folder: Path, archive: Path) -> None:
    """Write ``folder`` as an archive; times and owners are left out."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=9) as packed:
        packed.add(folder, "old", filter=plain)
    archive.write_bytes(content.getvalue())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], sys.argv[2:])
    else:
        main()
