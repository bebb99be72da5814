"""Text that the dense teacher writes."""

import json
import re
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.text.own_text import with_own_text
from tsconvert.text.sources import Source

HOW = {"tokens": 4096, "context": 128, "seed": 0, "device": "cpu", "bfloat16": False}


def test_the_teacher_writes_its_share_of_the_text_once(dense: Path, tmp_path: Path):
    other, file = Source(path="web.txt", weight=2.0), tmp_path / "own.jsonl"
    made = with_own_text((other, Source(path="self", weight=1.0)), dense, file, **HOW)
    assert made == (other, Source(path=str(file), weight=1.0))
    lines = file.read_text().splitlines()
    assert len(lines) == 16  # a third of 4,096 tokens, in rounds of 16 texts of 128
    assert len({json.loads(line)["text"] for line in lines}) == 16
    before = file.stat().st_mtime_ns
    assert with_own_text(made, dense, file, **HOW) == made
    with_own_text((Source(path="self"),), dense, file, **HOW)
    assert file.stat().st_mtime_ns == before


def test_a_model_for_conversations_writes_half_of_them_in_its_template(talker: Path, tmp_path: Path):
    """The conftest's template: <user>...</s>, <assistant>...</s>."""
    file = tmp_path / "own.jsonl"
    with_own_text((Source(path="self"),), talker, file, **HOW)
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    talks = [text for text in texts if text.startswith("<user>")]
    assert len(talks) >= 32 < len(texts)
    for text in talks:
        assert re.fullmatch(r"<user>(.*)</s>\n<assistant>(.*)</s>\n", text, re.DOTALL), text


def test_a_sparse_model_does_not_write(sparse: Path, tmp_path: Path):
    with pytest.raises(TsconvertError) as caught:
        with_own_text((Source(path="self"),), sparse, tmp_path / "own.jsonl", **HOW)
    assert str(caught.value) == f"--data self: {sparse} is drelu; --teacher DENSE is to write it"
