"""Files that several threads fill, past the page cache and through it."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tsconvert.quant.gguf import parallel_file
from tsconvert.quant.gguf.parallel_file import PAGE, ParallelFile

SIZE = 40 * PAGE + 123


@contextmanager
def placed(path: Path, size: int = SIZE) -> Iterator[ParallelFile]:
    with path.open("wb") as stream, ParallelFile(stream, size) as file:
        yield file


@pytest.fixture(params=["past the cache", "through the cache"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_file, "LARGE_BYTES", 0 if request.param == "past the cache" else SIZE + 1)
    monkeypatch.setattr(parallel_file, "_WORTH_BYTES", 1)


@pytest.mark.usefixtures("_way")
def test_pieces_of_any_length_from_several_threads_lie_where_they_belong(tmp_path: Path):
    """No end at a page's, all beginnings odd, and neighbours that share a page."""
    content = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    cuts = [0, 7, 7 + PAGE, 3 * PAGE + 1, 9 * PAGE, 9 * PAGE + 5, 21 * PAGE - 1, 30 * PAGE, SIZE]

    with placed(tmp_path / "f") as file, ThreadPoolExecutor(3) as pool:

        def write(start: int, stop: int) -> None:
            room = file.room(start, stop - start)
            room[:] = content[start:stop]
            file.write(start, room)

        list(pool.map(write, cuts[:-1], cuts[1:]))
    assert (tmp_path / "f").read_bytes() == content.tobytes()


@pytest.mark.usefixtures("_way")
def test_memory_that_does_not_lie_in_pages_as_the_file_does(tmp_path: Path):
    content = np.random.default_rng(0).integers(0, 256, SIZE + 1, np.uint8)[1:]
    with placed(tmp_path / "f") as file:
        file.write(0, b"head")
        file.write(4, content[4:])
    assert (tmp_path / "f").read_bytes() == b"head" + content[4:].tobytes()


def test_a_disk_that_wants_larger_units_gets_the_rest_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A system that takes four pages past the cache and then refuses."""
    monkeypatch.setattr(parallel_file, "LARGE_BYTES", 0)
    write, past = os.pwrite, []

    def pwrite(descriptor: int, content: memoryview, offset: int) -> int:
        if descriptor != file._direct:
            return write(descriptor, content, offset)
        past.append(offset)
        if len(past) > 1:
            raise OSError(errno.EINVAL, "wants 64 KB")
        return write(descriptor, content[: 4 * PAGE], offset)

    monkeypatch.setattr(parallel_file.os, "pwrite", pwrite)
    content = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    with placed(tmp_path / "f") as file:
        room = file.room(0, SIZE)
        room[:] = content
        file.write(0, room)
    assert past == [0, 4 * PAGE]
    assert (tmp_path / "f").read_bytes() == content.tobytes()


def test_a_failing_disk_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def pwrite(descriptor: int, content: memoryview, offset: int) -> int:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(parallel_file, "LARGE_BYTES", 0)
    monkeypatch.setattr(parallel_file.os, "pwrite", pwrite)
    with placed(tmp_path / "f") as file, pytest.raises(OSError, match="input/output error"):
        file.write(0, file.room(0, SIZE))
