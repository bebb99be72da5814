import errno
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.common.files import atomic_file, atomic_folder, reserved_name
from tsconvert.common.locks import locked


def hold(path: Path, folder: bool, pipe: Connection) -> None:
    """Another process's claim: said when it is there, kept until something comes."""
    with locked(path, path, folder=folder):
        pipe.send(os.getpid())
        pipe.recv()


@contextmanager
def other_process(path: Path, *, folder: bool) -> Iterator[int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(path, folder, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def test_two_runs_into_one_folder_are_told_apart(tmp_path: Path):
    out = tmp_path / "out"
    with other_process(tmp_path / "out.partial", folder=True) as pid:
        (tmp_path / "out.partial" / "theirs").touch()
        with pytest.raises(TsconvertError) as caught, atomic_folder(out):
            pass
        assert (tmp_path / "out.partial" / "theirs").exists()
    assert str(caught.value) == f"{out}: process {pid} is writing it; wait until that is done, or choose another name"
    with atomic_folder(out) as folder:
        assert not list(folder.iterdir())
    assert out.is_dir()


def test_two_runs_into_one_file_are_told_apart(tmp_path: Path):
    out = tmp_path / "out"
    with other_process(tmp_path / "out.partial", folder=False) as pid:
        (tmp_path / "out.partial").write_bytes(b"theirs")
        for way in (atomic_file, reserved_name):
            with pytest.raises(TsconvertError, match=f"^{out}: process {pid} is writing it; wait"), way(out):
                pass
        assert (tmp_path / "out.partial").read_bytes() == b"theirs"
    with reserved_name(out), atomic_file(out) as stream:
        stream.write(b"ours")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out": b"ours"}


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path):
    out = tmp_path / "out"
    with locked(tmp_path / "out.partial", out):
        out.touch()
        with pytest.raises(TsconvertError, match="out: exists already"), reserved_name(out):
            pass


@pytest.mark.parametrize("folder", [False, True])
def test_a_claim_leaves_nothing_behind(tmp_path: Path, folder: bool):
    path = tmp_path / "new" / "a"
    with locked(path, path, folder=folder), locked(path, path, folder=folder):
        assert path.exists()
    assert not list(tmp_path.iterdir())


def test_what_was_renamed_stays_and_so_does_what_another_made_in_its_place(tmp_path: Path):
    with locked(tmp_path / "a", tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_full_disk_names_the_file_that_has_no_room(tmp_path: Path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())
