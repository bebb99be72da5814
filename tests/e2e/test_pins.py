"""What commands write today, bit for bit: a change of the code that is to change nothing changes none of these pins.

pins.json holds SHA-256 of what each command below writes and prints. `everywhere` is of commands without training or
measuring, whose bytes no machine may change; `this_machine` is of trainings, whose last bits the processor and torch
decide: a machine that has no pins there skips them, and so does one whose pin of a command is null, because it was to
change and another machine was at hand.

    python tests/e2e/test_pins.py                        # say which pins differ here
    python tests/e2e/test_pins.py --write                # write all pins of this machine
    python tests/e2e/test_pins.py --write 'predictors*'  # only those; names as the tests', shell patterns
"""

import argparse
import fnmatch
import json
import random
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PINS = Path(__file__).with_name("pins.json")
Pin = dict[str, str]

# name -> the command, which runs in a folder of that name, beside those of the others
_LOCAL = "--tokens 2K --context 128 --steps 4 --batch-tokens 256"
_WHOLE = "--recover full --full-tokens 1K --full-batch-tokens 256 --micro-tokens 256 --evaluations 2"
_FULL = f"{_LOCAL} {_WHOLE}"
_AGAIN = f"--tokens 2K --context 128 {_WHOLE}"
_TEXT = "--tokens 1K --context 128"
_PREDICTORS = "--tokens 2K --context 128 --steps 10 --batch-tokens 256"
_RUN = "-p 'The people of the' -n 24 -t 1"
_EXPORT = "-t 1 --no-verify"
_MACHINE = "--bandwidth 20 --cores 4 --memory 16G --gflops 300 --disk 100G --disk-speed 1"

EVERYWHERE = {
    "copy-mistral": "relufy tiny-mistral --out sparse --recover none --no-align",
    "copy-mixtral": "relufy tiny-mixtral --out sparse --recover none --no-align --dtype F16 --max-shard-size 4M",
    "copy-reglu": "relufy tiny-mistral --out sparse --recover none --no-align --activation reglu --dtype F32",
    "export-mistral": f"export-gguf tiny-mistral --out m.gguf {_EXPORT}",
    "export-mistral-q4_k_m": f"export-gguf tiny-mistral --out m.gguf --type Q4_K_M {_EXPORT}",
    "export-mistral-bf16-split": f"export-gguf tiny-mistral --out m.gguf --type BF16 --split-max-size 1M {_EXPORT}",
    "export-mistral-pure": f"export-gguf tiny-mistral --out m.gguf --type Q4_0 --pure --name other"
    f" --tensor-type 'blk.0.*=Q5_1' --metadata general.author=nobody {_EXPORT}",
    "export-mixtral": f"export-gguf tiny-mixtral --out m.gguf {_EXPORT}",
    "export-mixtral-q4_k_m": f"export-gguf tiny-mixtral --out m.gguf --type Q4_K_M {_EXPORT}",
    "export-copy-q8_0": f"export-gguf ../copy-mistral/sparse --out m.gguf --type Q8_0 {_EXPORT}",
    "export-copy-mixtral": f"export-gguf ../copy-mixtral/sparse --out m.gguf {_EXPORT}",
    "quantize-mistral-q4_k_m": "quantize ../export-mistral/m.gguf --out q.gguf --type Q4_K_M -t 1",
    "quantize-mixtral-q4_k_m": "quantize ../export-mixtral/m.gguf --out q.gguf --type Q4_K_M -t 1",
    "quantize-mistral-q2_k": "quantize ../export-mistral/m.gguf --out q.gguf --type Q2_K -t 1",
    "quantize-mistral-iq4_nl": "quantize ../export-mistral/m.gguf --out q.gguf --type IQ4_NL -t 1",
    "quantize-copy-q5_k_s": "quantize ../export-copy-mixtral/m.gguf --out q.gguf --type Q5_K_S -t 1",
    "run-mistral": f"run ../export-mistral/m.gguf --temp 0 {_RUN}",
    "run-mistral-q4_k_m": f"run ../quantize-mistral-q4_k_m/q.gguf --temp 0 {_RUN}",
    "run-mistral-seeded": f"run ../export-mistral/m.gguf --seed 1 --repeat-penalty 1.1 {_RUN}",
    "run-mixtral": f"run ../export-mixtral/m.gguf --temp 0 {_RUN}",
    "run-mixtral-seeded": f"run ../export-mixtral/m.gguf --seed 1 {_RUN}",
    "run-copy": f"run ../export-copy-q8_0/m.gguf --temp 0 --sparsity exact {_RUN}",
    "inspect-mistral": "inspect tiny-mistral --tensors",
    "inspect-copy": "inspect ../copy-mixtral/sparse",
    "inspect-gguf": "inspect ../export-mixtral/m.gguf --tensors",
    "plan-mixtral": f"plan tiny-mixtral {_MACHINE}",
}
THIS_MACHINE = {
    "relufy-align": "relufy tiny-mistral --out sparse --recover none --tokens 2K --context 128",
    "relufy-local": f"relufy tiny-mistral --out sparse {_LOCAL}",
    "relufy-local-mixtral": f"relufy tiny-mixtral --out sparse --min-expert-tokens 500 {_LOCAL}",
    "relufy-local-sparser": f"relufy tiny-mistral --out sparse --precision f32 --target-sparsity 0.9 --shift 0.99"
    f" --dtype F32 --seed 1 {_LOCAL}",
    "relufy-local-reglu": f"relufy tiny-mistral --out sparse --activation reglu --no-attention {_LOCAL}",
    "relufy-local-again": f"relufy ../relufy-local/sparse --teacher tiny-mistral --out sparse {_LOCAL}",
    "relufy-joint": f"relufy tiny-mistral --out sparse --predictors predictors --rank 16 {_LOCAL}",
    "relufy-full": f"relufy tiny-mistral --out sparse {_FULL}",
    "relufy-full-joint": f"relufy tiny-mistral --out sparse --predictors predictors --rank 16 {_FULL}",
    "relufy-full-steered": f"relufy ../relufy-local/sparse --teacher tiny-mistral --out sparse --target-sparsity 0.9"
    f" --hidden 0.1 --top-logits 32 --train-embeddings {_AGAIN}",
    "relufy-full-stream": f"relufy ../relufy-local/sparse --teacher tiny-mistral --out sparse --stream"
    f" --data ../words.txt {_AGAIN} --context 32 --evaluations 1",
    "profile": f"profile ../relufy-local/sparse --out p.safetensors --powerinfer-dir counts {_TEXT}",
    "profile-mixtral": f"profile ../relufy-local-mixtral/sparse --out p.safetensors {_TEXT}",
    "imatrix": f"imatrix tiny-mistral --out i.gguf {_TEXT}",
    "imatrix-sparse-mixtral": f"imatrix ../relufy-local-mixtral/sparse --out i.gguf {_TEXT}",
    "predictors": f"predictors ../relufy-local/sparse --out predictors --rank 16 {_PREDICTORS}",
    "predictors-mixtral": f"predictors ../relufy-local-mixtral/sparse --out predictors --rank 8 {_PREDICTORS}",
    "predictors-auto": f"predictors ../relufy-local/sparse --out predictors --budget 0.06 --max-density 0.9"
    f" {_PREDICTORS}",
    "predictors-max-loss": f"predictors ../relufy-local/sparse --out predictors --rank 16 --max-loss 0.05"
    f" --stored-as Q8_0 --precision f32 {_PREDICTORS}",
    "predictors-from": f"predictors ../relufy-joint/sparse --from ../relufy-joint/predictors --out predictors"
    f" {_PREDICTORS}",
    "export-sparse": "export-gguf ../relufy-joint/sparse --predictors ../relufy-joint/predictors --out m.gguf -t 1",
    "export-sparse-q8_0": "export-gguf ../relufy-joint/sparse --predictors ../relufy-joint/predictors --out m.gguf"
    f" --type Q8_0 --predictor-type Q8_0 --separate-predictors {_EXPORT}",
    "export-sparse-profile": "export-gguf ../relufy-local/sparse --profile ../profile/p.safetensors --out m.gguf"
    f" --predictors ../predictors/predictors {_EXPORT}",
    "export-sparse-shifted": f"export-gguf ../relufy-local-sparser/sparse --out m.gguf {_EXPORT}",
    "export-sparse-mixtral": "export-gguf ../relufy-local-mixtral/sparse --predictors ../predictors-mixtral/predictors"
    f" --imatrix ../imatrix-sparse-mixtral/i.gguf --type Q4_K_M --out m.gguf {_EXPORT}",
    "export-powerinfer": "export-gguf ../relufy-joint/sparse --predictors ../relufy-joint/predictors --out m.gguf"
    f" --target powerinfer --vram 3M {_EXPORT}",
    "export-powerinfer-q4_0": "export-gguf ../relufy-joint/sparse --predictors ../relufy-joint/predictors --out m.gguf"
    f" --target powerinfer --type Q4_0 --no-order {_EXPORT}",
    "export-imatrix-iq3_xs": "export-gguf tiny-mistral --imatrix ../imatrix/i.gguf --type IQ3_XS --out m.gguf"
    f" {_EXPORT}",
    "quantize-imatrix-q4_k_m": "quantize ../export-mistral/m.gguf --imatrix ../imatrix/i.gguf --type Q4_K_M"
    " --out q.gguf -t 1",
    "run-dense": f"run ../export-sparse/m.gguf --sparsity dense --temp 0 {_RUN}",
    "run-exact": f"run ../export-sparse/m.gguf --sparsity exact --temp 0 {_RUN}",
    "run-predicted": f"run ../export-sparse/m.gguf --sparsity predicted --temp 0 {_RUN}",
    "run-audited": f"run ../export-sparse-q8_0/m.gguf --sparsity predicted --audit --seed 1 {_RUN}",
    "run-powerinfer": f"run ../export-powerinfer/m.gguf --temp 0 {_RUN}",
    "run-mixtral-dense": f"run ../export-sparse-mixtral/m.gguf --sparsity dense --temp 0 {_RUN}",
    "run-mixtral-exact": f"run ../export-sparse-mixtral/m.gguf --sparsity exact --temp 0 {_RUN}",
    "run-mixtral-predicted": f"run ../export-sparse-mixtral/m.gguf --sparsity predicted --temp 0 {_RUN}",
    "run-mixtral-predicted-seeded": f"run ../export-sparse-mixtral/m.gguf --sparsity predicted --seed 1 {_RUN}",
    "eval-checkpoint": "eval ../relufy-full/sparse --tokens 1K --ctx 128",
    "eval-predicted": "eval ../export-sparse/m.gguf --tokens 1K --ctx 128 -t 1 --against tiny-mistral",
    "inspect-predictors": "inspect ../predictors-mixtral/predictors",
    "inspect-profile": "inspect ../profile/p.safetensors",
}
COMMANDS = {**EVERYWHERE, **THIS_MACHINE}


class Outputs:
    """What the commands write, each made when it is first asked for, after those that it reads.

    Args:
        command_line: runs a command in a folder and returns what it prints as JSON.
        digests: the hashes of all files in a folder.
        steady: the hash of a JSON value.
        folder: for all outputs, each in a folder of its own.
    """

    def __init__(
        self, command_line: Callable[..., dict[str, Any]], digests: Callable[[Path], Pin],
        steady: Callable[[Any], str], folder: Path,
    ) -> None:  # fmt: skip
        self._command_line, self._digests, self._steady, self._folder = command_line, digests, steady, folder
        self._found: dict[str, Pin] = {}
        (folder / "words.txt").write_text(_words(6000), encoding="utf-8")

    def __getitem__(self, name: str) -> Pin:
        """The pin of the output ``name``."""
        if name not in self._found:
            words = shlex.split(COMMANDS[name])
            for word in words:
                if word.startswith("../") and word != "../words.txt":
                    self[word.split("/")[1]]
            here = self._folder / name
            here.mkdir()
            self._found[name] = self._said(name, self._command_line(words, here)) | self._digests(here)
        return self._found[name]

    def _said(self, name: str, report: dict[str, Any]) -> Pin:
        """A text and its tokens as they are; all else as a hash, if a machine may not change it."""
        if not name.startswith("run-"):
            return {"report": self._steady(report)}
        found = {"text": report.pop("text"), "tokens": " ".join(map(str, report.pop("tokens")))}
        return found | ({"report": self._steady(report)} if name in THIS_MACHINE else {})


def _words(count: int) -> str:
    """A text of so many words, the same for ever."""
    words = ["the", "people", "of", "United", "States", "and", "their", "Congress", "are", "to", "be", "heard"]
    return " ".join(random.Random(0).choices(words, k=count))


@pytest.fixture(scope="session")
def outputs(command_line: Any, of_outputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return Outputs(command_line, of_outputs.digests, of_outputs.steady, tmp_path_factory.mktemp("pins"))


@pytest.fixture(scope="session")
def pins() -> dict[str, Any]:
    return json.loads(PINS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_command_writes_what_it_always_wrote(outputs: Outputs, pins: dict[str, Any], name: str):
    assert outputs[name] == pins["everywhere"][name]


@pytest.mark.parametrize("name", THIS_MACHINE)
def test_a_training_gives_what_it_gave_on_this_machine(
    outputs: Outputs, pins: dict[str, Any], of_outputs: Any, name: str
):
    here = of_outputs.machine()
    if here not in pins["this_machine"]:
        pytest.skip(f"there are no pins for this machine, and trainings differ in their last bits: {here}")
    if pins["this_machine"][here][name] is None:
        pytest.skip(f"the pin was changed on another machine: python tests/e2e/test_pins.py --write {name}")
    assert outputs[name] == pins["this_machine"][here][name]


def test_pins_and_commands_have_the_same_names(pins: dict[str, Any]):
    assert list(pins["everywhere"]) == list(EVERYWHERE)
    for names in pins["this_machine"].values():
        assert list(names) == list(THIS_MACHINE)


def differences(old: Pin | None, new: Pin) -> Iterator[str]:
    """The parts in which two pins differ."""
    if not old:
        yield "new"
        return
    for part in dict.fromkeys([*old, *new]):
        if old.get(part) != new.get(part):
            yield part


def main() -> None:
    """Say which pins differ here, and write them if that is asked for."""
    import conftest  # beside this file; as a test it comes by fixtures

    import tsconvert

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], help="of pins; shell patterns")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    print(f"of {tsconvert.__path__[0]}", flush=True)  # noqa: T201
    pins = json.loads(PINS.read_text(encoding="utf-8")) if PINS.exists() else {}
    known = pins.setdefault("everywhere", {}), pins.setdefault("this_machine", {}).setdefault(conftest.machine(), {})
    with conftest.CommandLine() as command_line, tempfile.TemporaryDirectory(prefix="pins-") as folder:
        outputs = Outputs(command_line, conftest.digests, conftest.steady, Path(folder))
        for commands, group in zip((EVERYWHERE, THIS_MACHINE), known, strict=True):
            for name in commands:
                if any(fnmatch.fnmatch(name, pattern) for pattern in options.names):
                    for part in differences(group.get(name, {}), outputs[name]):
                        print(f"{name}: {part}", flush=True)  # noqa: T201
                    group[name] = outputs[name]
            ordered = {name: group[name] for name in commands if name in group}
            group.clear()
            group.update(ordered)
    if options.write:
        PINS.write_text(json.dumps(pins, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
