import json
import random
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.text import sources
from tsconvert.text.packing import packed_rows
from tsconvert.text.sources import Source, mixture, parse_source


class Bytes:
    """A tokenizer of one token a byte."""

    def __call__(self, text: str) -> "Bytes":
        self.input_ids = list(text.encode())
        return self


def decode(rows: np.ndarray) -> str:
    return bytes(rows.reshape(-1).tolist()).decode()


def test_weights_share_the_tokens_out(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a" * 40_000)
    (tmp_path / "b.txt").write_text("b" * 40_000)
    sources = [parse_source(f"{tmp_path / 'a.txt'}=3"), parse_source(f"{tmp_path / 'b.txt'}=1")]
    rows = packed_rows(Bytes(), sources, tokens=16_000, context=100)[0]
    assert rows.shape == (160, 100)
    assert decode(rows).count("a") == 12_000


@pytest.mark.parametrize("text", [" ".join(f"word{i}" for i in range(20_000)), "\u6f22\u5b57" * 30_000, "x\n" * 9])
def test_pieces_lose_nothing_and_cut_no_word(tmp_path: Path, text: str):
    (tmp_path / "t.txt").write_text(text)
    pieces = list(sources.texts(Source(path=str(tmp_path / "t.txt")), random.Random(0)))
    assert len(pieces) == -(-len(text.encode()) // 16_384)
    assert sorted("".join(pieces)) == sorted(text)
    assert " " not in text or sorted(word for piece in pieces for word in piece.split()) == sorted(text.split())


def test_few_tokens_come_from_all_over_the_text_in_a_seeded_order(tmp_path: Path):
    (tmp_path / "t.txt").write_text("".join(f"{i:07} " for i in range(100_000)))
    source = [Source(path=str(tmp_path / "t.txt"))]
    one = packed_rows(Bytes(), source, tokens=60_000, context=100, seed=1)[0]
    assert np.array_equal(one, packed_rows(Bytes(), source, tokens=60_000, context=100, seed=1)[0])
    other = packed_rows(Bytes(), source, tokens=60_000, context=100, seed=2)[0]
    assert not np.array_equal(one, other)
    numbers = [int(word) for word in decode(one).split() if len(word) == 7]
    assert max(numbers) - min(numbers) > 50_000


def test_jsonl_folders_and_parquet(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "x" * 200}) + "\n" for _ in range(50)))
    (tmp_path / "skip.bin").write_bytes(b"\xff" * 5000)
    rows = packed_rows(Bytes(), [Source(path=str(tmp_path))], tokens=5_000, context=50)[0]
    assert set(decode(rows)) == {"x"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"too short", "9 tokens, which is not one row of 100; give more text"),
        (b"\xff\xfe" * 400, "not UTF-8 text (byte 0); give text, .jsonl or .parquet"),
    ],
)
def test_text_that_cannot_serve_is_named(tmp_path: Path, content: bytes, sentence: str):
    file = tmp_path / "t.txt"
    file.write_bytes(content)
    with pytest.raises(TsconvertError) as caught:
        packed_rows(Bytes(), [Source(path=str(file))], tokens=1000, context=100)[0]
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith(sentence)


def test_a_damaged_jsonl_line_is_named(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(TsconvertError, match=r"a\.jsonl: a line is no JSON object with a field 'text'"):
        packed_rows(Bytes(), [Source(path=str(tmp_path / "a.jsonl"))], tokens=100, context=10)[0]


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1" + b"\xff" * 64 + b"PAR1")
    with pytest.raises(TsconvertError, match=r"a\.parquet: is no parquet file \(.+\); get it again$"):
        packed_rows(Bytes(), [Source(path=str(file))], tokens=100, context=10)[0]
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), file)
    with pytest.raises(
        TsconvertError, match=r"a\.parquet: has no column 'text' that can be read \(.+\); get it again$"
    ):
        packed_rows(Bytes(), [Source(path=str(file))], tokens=100, context=10)[0]


def test_data_arguments():
    assert parse_source("web.txt=0.75") == Source(path="web.txt", weight=0.75)
    assert parse_source("web.txt") == Source(path="web.txt")
    assert parse_source("a=b.txt") == Source(path="a=b.txt")
    with pytest.raises(TsconvertError, match=r"the weight must be a number above 0, as in FILE=0\.5"):
        parse_source("web.txt=-1")


def test_a_mixture_files_shares(tmp_path: Path):
    for name, letter in (("a", "a"), ("b", "b"), ("c", "c")):
        (tmp_path / f"{name}.txt").write_text(letter * 50_000)
    file = tmp_path / "mix.toml"
    file.write_text('[[source]]\ndata = "a.txt"\nweight = 3\n[[source]]\ndata = "b.txt"\nweight = 1\n')
    rows = packed_rows(
        Bytes(), [Source(path=str(file), weight=0.8), Source(path=str(tmp_path / "c.txt"), weight=0.2)],
        tokens=20_000, context=100,
    )[0]  # fmt: skip
    shares = [float((rows == ord(letter)).mean()) for letter in "abc"]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.01)


@pytest.mark.parametrize(
    ("content", "why"),
    [("[[source]]\nweight = 1\n", "'data'"), ("x", "Expected '='"), ('[[source]]\ndata = "a"\nshare = 2\n', "share")],
)
def test_a_mixture_file_that_is_none(tmp_path: Path, content: str, why: str):
    file = tmp_path / "mix.toml"
    file.write_text(content)
    with pytest.raises(TsconvertError, match=r"no mixture file .*; it lists \[\[source\]\] tables") as caught:
        mixture(Source(path=str(file)))
    assert why in str(caught.value)


def test_a_data_sets_subset_split_and_field(tmp_path: Path, monkeypatch):
    records = datasets.Dataset.from_dict({"body": ["one " * 200, "two " * 200]})
    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or records.to_iterable_dataset())
    source = Source(path="somebody/corpus", subset="en", split="test", field="body")
    assert packed_rows(Bytes(), [source], tokens=1000, context=100)[0].shape == (10, 100)
    assert asked == [(("somebody/corpus", "en"), {"split": "test", "streaming": True})]
    with pytest.raises(TsconvertError) as caught:
        packed_rows(Bytes(), [replace(source, field="text")], tokens=1000, context=100)[0]
    assert str(caught.value) == (
        "--data somebody/corpus: its records have no field 'text', but body; name one of those as field in a mixture"
        " file (.toml)"
    )


@pytest.mark.parametrize("name", ["turbosparse", "offline"])
def test_the_mixture_files_of_the_examples(name: str):
    parts = mixture(Source(path=str(Path(__file__).parents[2] / "examples" / "mixtures" / f"{name}.toml")))
    assert len(parts) >= 4
    assert sum(part.weight for part in parts) == pytest.approx(1.0)
