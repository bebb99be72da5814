"""Rows that are made while they are trained on."""

from pathlib import Path

import torch

from tsconvert.text.sources import Source
from tsconvert.text.streams import StreamedRows


class Letters:
    """A tokenizer of bytes."""

    bos_token_id = None

    def __call__(self, text: str):
        return type("Encoded", (), {"input_ids": list(text.encode())})


def test_streamed_rows_keep_the_shares_and_go_on_where_they_were(tmp_path: Path):
    for letter in "ab":
        (tmp_path / f"{letter}.txt").write_text(letter * 3_000)
    sources = [Source(path=str(tmp_path / "a.txt"), weight=3), Source(path=str(tmp_path / "b.txt"), weight=1)]
    rows = [row for row, _ in zip(StreamedRows(Letters(), sources, 100, seed=1), range(80), strict=False)]
    assert [chr(row["input_ids"][0]) for row in rows[:8]] == list("aabaaaba")
    later = next(iter(StreamedRows(Letters(), sources, 100, seed=1, skip=41)))
    assert torch.equal(later["input_ids"], rows[41]["input_ids"])
