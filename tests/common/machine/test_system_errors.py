import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tsconvert import cli
from tsconvert.common.machine.system_errors import in_words, no_room

FULL = "the disk is full; make room or choose another --out"
DENIED = "a: permission denied; choose another place or have the permissions changed"
LINKS = "a: too many levels of symbolic links; this is the system's answer, try again or look for its reason"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), f"a: {FULL}"),
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), FULL),
        (PermissionError(errno.EACCES, "", "a"), DENIED),
        (OSError(errno.ELOOP, "", "a"), LINKS),
        (MemoryError(), "not enough memory; end other programs"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory; end other programs"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"
         " allocate 8 bytes."), "not enough memory; end other programs"),
        (RuntimeError("std::bad_alloc"), "not enough memory; end other programs"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "not enough memory; end other programs"),
        (RuntimeError("shapes cannot be multiplied"), None),
        (KeyError("a"), None),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_one_sentence(error: Exception, said: str | None):
    assert in_words(error) == said
    assert no_room(error) == (FULL in str(said))


def test_the_options_that_save_memory_are_named():
    assert in_words(MemoryError(), {"--tokens", "--threads", "--out"}) == (
        "not enough memory; end other programs or give smaller --tokens, --threads"
    )


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, FULL), (errno.ENOENT, None)])
def test_a_full_disk_behind_another_error_is_found_and_a_missing_file_is_not(number: int, said: str | None):
    error = ValueError("I/O operation on closed file")
    error.__context__ = OSError(number, "")
    assert in_words(error) == said
    assert no_room(error) == (said == FULL)


@pytest.mark.parametrize(
    ("words", "ending"),
    [(["relufy", "m", "--out", "o"], "; --resume goes on with what is finished"), (["inspect", "m"], "")],
)
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(OSError(errno.EROFS, "", "o"), 2, "error: o: the file system is read-only; choose another --out"),
     (KeyboardInterrupt(), 130, "interrupted")],
)  # fmt: skip
def test_the_command_line_says_so_and_how_to_go_on(monkeypatch, words, ending, error, code, said):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tsconvert.convert.relufy.relufy", refuse)
    monkeypatch.setattr("tsconvert.evaluate.inspect.outputs.inspect", refuse)
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == code
    assert result.stderr.strip() == said + ending


def test_a_result_that_cannot_be_printed_is_an_error():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tsconvert", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, f"error: {FULL}\n")


@pytest.mark.parametrize(("command", "needed"), [("relufy", 3 << 30), ("quantize", 1 << 30)])
def test_a_limit_on_addresses_below_what_libraries_take_is_said_at_once(command: str, needed: int):
    shell = f"ulimit -v 200000; exec {sys.executable} -m tsconvert {command} nothing --out nothing"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    needed += (512 << 20) + (80 << 20) * (os.cpu_count() or 1)
    assert done.returncode == 2
    assert re.match(r"error: the limit on this process's addresses \(ulimit -v\) leaves [\d,]+ bytes and ", done.stderr)
    assert f" and {needed:,} are needed; raise it" in done.stderr
