from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.files.journal import Journal

HEAD = {"asked": {"seed": "0"}, "source": "abc"}


def test_finished_layers_are_found_again(tmp_path: Path):
    journal = Journal(tmp_path / "j", HEAD)
    assert journal.entry(0) is None
    journal.add(0, {"error": 0.5})
    assert Journal(tmp_path / "j", HEAD).entry(0) == {"layer": 0, "error": 0.5}


@pytest.mark.parametrize("cut", [1, 5, 20, 30, 60])
def test_a_line_that_a_kill_cut_off_is_no_finished_layer(tmp_path: Path, cut: int):
    Journal(tmp_path / "j", HEAD).add(0, {"error": 0.5})
    (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes()[:-cut])
    journal = Journal(tmp_path / "j", HEAD)
    assert journal.entry(0) is None
    journal.add(0, {"error": 0.25})
    assert Journal(tmp_path / "j", HEAD).entry(0) == {"layer": 0, "error": 0.25}


def test_another_head_is_refused(tmp_path: Path):
    Journal(tmp_path / "j", HEAD)
    with pytest.raises(TsconvertError, match="was begun with other settings or another model"):
        Journal(tmp_path / "j", HEAD | {"source": "other"})


@pytest.mark.parametrize("line", [b"3", b'{"layer": [1]}', b"{}", b"[" * 100_000, b"\xff"])
def test_a_damaged_journal_is_named(tmp_path: Path, line: bytes):
    Journal(tmp_path / "j", HEAD)
    with (tmp_path / "j").open("ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(TsconvertError) as caught:
        Journal(tmp_path / "j", HEAD)
    assert str(caught.value) == f"{tmp_path / 'j'}: is damaged; remove {tmp_path} and start again"
