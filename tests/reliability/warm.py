"""Runs of the command line that cost no start-up: forked from a process that has imported all and computed nothing.

Such a run goes through `tsconvert.__main__.main` as `tsconvert` does; it can be killed from outside at any time,
be killed before its n-th operation on files, and be given limits and failing system calls.
"""

import importlib
import multiprocessing
import os
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from failing_calls import fail_calls

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

HERE = Path(__file__).parent
LAZY = ("transformers.trainer", "transformers.models.mistral.modeling_mistral", "transformers.generation")
PACKAGES = ("cli", "convert", "evaluate", "models", "predictors", "quant", "runner")
_SAID, _COUNTED = ("stdout", "stderr"), "operations"  # apart from the folder: its disk may be full
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
_WRITES = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is wrong with the machine that a run is on."""

    file_bytes: int | None = None
    """RLIMIT_FSIZE: no file grows larger; the write that crosses it is short."""
    more_memory_bytes: int | None = None
    """RLIMIT_AS: beyond what the process has when it begins."""
    failing: dict[str, int] = field(default_factory=dict)
    """System call -> errno, for file descriptors above 2."""
    from_operation: int = 0
    """The calls fail from this operation on files on; 0: at once."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What became of a run."""

    code: int
    """Exit code; -9 if it was killed."""
    said: str
    """On stderr."""
    printed: str
    elapsed_s: float
    operations: int
    """On files in its folder that it got to."""


class Started:
    """A run that is under way, in ``folder``."""

    def __init__(self, arguments: list[str], folder: Path, limits: Limits, die_at: int) -> None:
        self.logs, self.begun_s = Path(tempfile.mkdtemp(prefix="tsconvert-said-")), time.monotonic()
        self.process: BaseProcess = _server().Process(
            target=_child, args=(arguments, str(folder), str(self.logs), limits, die_at)
        )
        self.process.start()

    def end(self, after_s: float | None = None, how: int = signal.SIGKILL) -> Run:
        """Wait for it, or send it a signal ``after_s``."""
        self.process.join(after_s)
        while how == signal.SIGINT and not (self.logs / _SAID[-1]).exists() and self.process.exitcode is None:
            self.process.join(1e-3)  # it is not the command yet that would be interrupted
        if self.process.exitcode is None:
            os.kill(self.process.pid or 0, how)
            self.process.join()
        elapsed_s = time.monotonic() - self.begun_s
        printed, said, counted = (self.logs / name for name in (*_SAID, _COUNTED))
        code = self.process.exitcode
        assert code is not None
        count = counted.stat().st_size if counted.exists() else 0
        run = Run(
            code=code, said=said.read_text(errors="replace") if said.exists() else "",
            printed=printed.read_text(errors="replace") if printed.exists() else "",
            elapsed_s=elapsed_s, operations=count,
        )  # fmt: skip
        shutil.rmtree(self.logs)
        return run


def start(arguments: list[str], folder: Path, limits: Limits = Limits(), die_at: int = 0) -> Started:
    """Begin a run.

    Args:
        arguments: of `tsconvert`.
        folder: its working directory.
        die_at: SIGKILL before this operation on files in the folder, counted from 1; 0: never.
    """
    return Started(arguments, folder, limits, die_at)


def _server() -> Any:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm", "warm_imports"])
    return context


def import_all() -> None:
    """Everything that a command may import; nothing is computed, so that a fork is safe."""
    import tsconvert

    for module in pkgutil.walk_packages(tsconvert.__path__, "tsconvert."):
        if module.name.split(".")[1] in PACKAGES:
            importlib.import_module(module.name)
    for name in LAZY:
        importlib.import_module(name)


def _child(arguments: list[str], folder: str, logs: str, limits: Limits, die_at: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the command begins
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    os.chdir(folder)
    for number, name in enumerate(_SAID, 1):
        descriptor = os.open(f"{logs}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
    _watch(folder, logs, limits, die_at)
    if limits.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    if limits.more_memory_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + limits.more_memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    from tsconvert.__main__ import main

    sys.argv = ["tsconvert", *arguments]
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:  # before the command's first line
        code = 130
        sys.stderr.write("interrupted\n")
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _watch(folder: str, logs: str, limits: Limits, die_at: int) -> None:
    """Count operations on files in ``folder`` (a byte each in a file of ``logs``); do at one of them what is asked."""
    counter = os.open(f"{logs}/{_COUNTED}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if limits.failing and not limits.from_operation:
        fail_calls(limits.failing)
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(folder + os.sep):  # noqa: PTH100
            return
        done += 1
        if done == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if limits.failing and done == limits.from_operation:
            fail_calls(limits.failing)
        if not limits.failing:
            os.write(counter, b".")

    sys.addaudithook(hook)
