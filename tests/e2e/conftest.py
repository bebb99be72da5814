"""What the tests of outputs share: one warm process for the command line, hashes of what it wrote, the machine's name.

Run as a program this file is that process.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
VARYING = (
    "elapsed_s", "prompt_tokens_per_s", "tokens_per_s", "bandwidth", "settings", "transformers_version", "version",
)  # fmt: skip
"""Times, versions, and all options of a command: two runs that do the same differ in these. Settings are compared by
the journals of test_old_outputs.py."""
VARYING_KEYS = ("tsconvert.version", "GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")
"""Of a GGUF file; the last three are gguf-py's own."""


class CommandLine:
    """`tsconvert` in a process of its own, on one thread; it imports once and runs one command after the other.

    Example:
        >>> with CommandLine() as tsconvert:
        ...     tsconvert(["relufy", "tiny-mistral", "--out", "sparse"], Path("work"))["parameters"]
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            env={**os.environ, **ONE_THREAD, **OFFLINE},
        )  # fmt: skip

    def __call__(self, words: Sequence[str], folder: Path) -> dict[str, Any]:
        """What the command, started in ``folder``, prints with --json."""
        code, printed, said = self.run([*words, "--json"], folder)
        assert code == 0, f"tsconvert {' '.join(words)}\nin {folder} ended with {code}: {said}"
        found: dict[str, Any] = json.loads(printed)
        return found

    def run(self, words: Sequence[str], folder: Path) -> tuple[int, str, str]:
        """The command's exit code, stdout and stderr."""
        asks, answers = self._process.stdin, self._process.stdout
        assert asks is not None
        assert answers is not None
        asks.write(json.dumps([list(words), str(folder)]) + "\n")
        asks.flush()
        answer = answers.readline()
        assert answer, f"tsconvert {' '.join(words)}: the process ended"
        code, printed, said = json.loads(answer)
        return code, printed, said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, which ends it


def serve() -> None:
    """Run the commands that come by stdin, a JSON line each, and answer by stdout."""
    import torch

    from tsconvert import cli

    torch.set_num_threads(1)
    answers = sys.stdout
    for line in sys.stdin:
        words, folder = json.loads(line)
        os.chdir(folder)
        code: object = 0
        with (
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            try:
                cli.main(words, prog_name="tsconvert")
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException:
                traceback.print_exc()
                code = 1
        answers.write(json.dumps([code, printed.getvalue(), said.getvalue()]) + "\n")
        answers.flush()


def machine() -> str:
    """What the last bits of a training depend on: torch, its instructions, and the processor."""
    import torch

    wanted = ("vendor_id", "model name", "cpu family", "model", "stepping")
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name in wanted:
                found.setdefault(name, value)
    processor = ", ".join(f"{name} {found.get(name, 'unknown')}" for name in wanted[1:])
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {processor}"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what each file in ``folder`` holds, by name and part; times and versions do not count."""
    found: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found |= _tensors_of(path, name)
        elif path.suffix == ".gguf":
            found |= _gguf(path, name)
        elif path.suffix == ".json":
            found[name] = steady(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".py":
            found[name] = "is there"  # its text is the tool's own
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def steady(value: Any) -> str:
    """SHA-256 of a JSON value without what varies between equal runs."""
    return hashlib.sha256(json.dumps(without_varying(value)).encode()).hexdigest()


def without_varying(value: Any) -> Any:
    """A JSON value without what varies between equal runs; so are JSON texts within it."""
    if isinstance(value, dict):
        return {name: without_varying(each) for name, each in value.items() if name not in VARYING}
    if isinstance(value, list | tuple):
        return [without_varying(each) for each in value]
    if isinstance(value, str) and len(Path(value).parts) > 2 and Path(value).is_absolute() and Path(value).exists():
        return Path(value).name  # the embedded models and texts lie where the package does
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            return without_varying(json.loads(value))
    return value


def outcome(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What a run of relufy or predictors with `--out NAME` reported, and the hashes of its folders.

    What it was typed as does not count: it was with --resume or without.
    """
    made = [folder / name, folder / f"{name}-predictors"]
    found = {f"{path.name}/{part}": digest for path in made for part, digest in digests(path).items()}
    card = f"{name}/README.md"
    if card in found:
        lines = (folder / card).read_text(encoding="utf-8").splitlines()
        found[card] = steady([line for line in lines if not line.startswith("    tsconvert ")])
    record = f"{name}/tsconvert.json"
    content = json.loads((folder / (record if record in found else f"{name}/config.json")).read_text(encoding="utf-8"))
    if record in found:
        found[record] = steady(content["report"])
    return content["report"], found


def _tensors_of(path: Path, name: str) -> dict[str, str]:
    """A safetensors file's tensors, and its metadata if there is more than the format's name."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    whole = hashlib.sha256()
    for tensor, about in sorted(header.items()):
        begin, end = (start + offset for offset in about["data_offsets"])
        whole.update(f"{tensor} {about['dtype']} {about['shape']}\n".encode() + content[begin:end])
    found = {f"{name}: tensors": whole.hexdigest()}
    return found if metadata in ({}, {"format": "pt"}) else found | {f"{name}: metadata": steady(metadata)}


def _gguf(path: Path, name: str) -> dict[str, str]:
    """A GGUF file's tensors and keys, as gguf-py reads them; PowerInfer's files differ by the magic alone."""
    import gguf

    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
        copy = Path(shutil.copyfile(path, Path(folder) / "file.gguf"))
        with copy.open("r+b") as stream:
            magic = stream.read(4)
            stream.seek(0)
            stream.write(b"GGUF")
        reader = gguf.GGUFReader(copy)
        tensors, keys = hashlib.sha256(magic), hashlib.sha256()
        for tensor in reader.tensors:
            offset = tensor.data_offset - reader.data_offset
            shape = [int(count) for count in tensor.shape]
            tensors.update(f"{tensor.name} {tensor.tensor_type.name} {shape} at {offset}\n".encode())
            tensors.update(tensor.data.tobytes())
        for key, field in reader.fields.items():
            if key not in VARYING_KEYS:
                kinds = [kind.name for kind in field.types]
                keys.update(json.dumps([key, kinds, without_varying(field.contents())]).encode() + b"\n")
        del reader, tensor
    return {f"{name}: tensors": tensors.hexdigest(), f"{name}: keys": keys.hexdigest()}


@pytest.fixture(scope="session")
def command_line() -> Iterator[CommandLine]:
    """The warm process."""
    with CommandLine() as process:
        yield process


@pytest.fixture(scope="session")
def of_outputs() -> ModuleType:
    """This file's functions: digests, steady, without_varying, machine."""
    return sys.modules[CommandLine.__module__]


if __name__ == "__main__":
    serve()
