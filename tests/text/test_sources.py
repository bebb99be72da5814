import json
import random
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.text import sources
from tsconvert.text.packing import calibration_rows, packed_rows
from tsconvert.text.sources import Source, mixture, parse_source
from tsconvert.text.streams import StreamedRows


class Bytes:
    """A tokenizer of one token a byte."""

    bos_token_id = None

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


def test_each_row_begins_as_texts_do(tmp_path: Path):
    """llama.cpp and `eval` begin their windows so; else Gemma 3's first layers are 20 times as steep."""

    class Begins(Bytes):
        bos_token_id = 1

        def __call__(self, text: str) -> "Begins":
            self.input_ids = [1, *text.encode()]
            return self

    for name, length in (("a", 250), ("b", 20)):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps({"text": name * length}) + "\n") * 40)
    sources = [Source(path=str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    rows, begins = packed_rows(Begins(), sources, tokens=4000, context=100)
    assert (rows[:, 0] == 1).all()
    assert (begins == (rows == 1)).all()
    assert (rows == ord("a")).sum() == 99 * (rows[:, 1] == ord("a")).sum() - (begins[rows[:, 1] == ord("a"), 1:]).sum()
    for (row, begin, _), _ in zip(StreamedRows(Begins(), sources, 100, seed=1).rows(), range(80), strict=False):
        assert row[0] == 1
        assert (begin == (row == 1)).all()


def test_rows_of_a_real_tokenizer_begin_with_its_bos():
    rows = calibration_rows(open_checkpoint("tiny-mistral"), (), tokens=2048, context=64)
    assert rows.shape == (32, 64)
    assert (rows[:, 0] == 1).all()  # <s>


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
    with pytest.raises(TsconvertError, match=r"a\.jsonl: line 1 has no field 'text', but body; name one of"):
        packed_rows(Bytes(), [Source(path=str(tmp_path / "a.jsonl"))], tokens=100, context=10)[0]


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1" + b"\xff" * 64 + b"PAR1")
    with pytest.raises(TsconvertError, match=r"a\.parquet: is no parquet file \(.+\); get it again$"):
        packed_rows(Bytes(), [Source(path=str(file))], tokens=100, context=10)[0]
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), file)
    with pytest.raises(TsconvertError, match=r"a\.parquet: row 1 has no field 'text', but body; name one of those as"):
        packed_rows(Bytes(), [Source(path=str(file))], tokens=100, context=10)[0]


def test_parquet_gives_the_documents_of_jsonl_in_the_same_order(tmp_path: Path):
    texts = [f"Document {i}. " + "word " * (i % 50) for i in range(2000)]
    texts[7], texts[1234] = "", None
    corpus = datasets.Dataset.from_dict({"number": list(range(2000)), "text": texts})
    lines, columns = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    corpus.to_json(lines)
    corpus.to_parquet(columns, batch_size=300)
    found = [list(sources.texts(Source(path=str(file)), random.Random(3))) for file in (lines, columns)]
    assert found[0] == found[1]
    in_order = list(sources.texts(Source(path=str(columns))))
    assert in_order == [
        text for text in datasets.Dataset.from_parquet(str(columns), cache_dir=tmp_path)["text"] if text is not None
    ]
    assert sorted(found[1]) == sorted(in_order)
    rows, begins = zip(
        *(packed_rows(Bytes(), [Source(path=str(file))], tokens=6000, context=60) for file in (lines, columns)),
        strict=True,
    )
    assert np.array_equal(*rows)
    assert np.array_equal(*begins)
    numbers = [int(word.rstrip(".")) for word in decode(rows[1]).split() if word.rstrip(".").isdigit()]
    assert max(numbers) - min(numbers) > 1500


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nulls_are_left_out_and_counted_and_other_values_refused(tmp_path: Path, suffix: str, capsys):
    def write(texts: list) -> Source:
        corpus = datasets.Dataset.from_dict({"text": texts})
        getattr(corpus, {"jsonl": "to_json"}.get(suffix, "to_parquet"))(tmp_path / f"a.{suffix}")
        return Source(path=str(tmp_path / f"a.{suffix}"))

    source = write(["one", None, "two", None])
    assert list(sources.texts(source)) == ["one", "two"]
    assert f"--data {source.path}: 2 records without text (null) were left out\n" in capsys.readouterr().err
    place = "row" if suffix == "parquet" else "line"
    for value in (["a", "b"], {"a": "b"}, 5):
        with pytest.raises(TsconvertError) as caught:
            list(sources.texts(write([None, value])))
        assert str(caught.value) == (
            f"{source.path}: {place} 2 has {value} as 'text', which is no text; write text there or leave it out"
        )


def test_half_a_character_in_a_record_is_a_replacement_character(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83db \\ud83d\\ude42"}\n')
    assert list(sources.texts(Source(path=str(tmp_path / "a.jsonl")))) == ["a\ufffdb \U0001f642"]


def test_a_byte_that_is_no_utf_8_in_a_record_is_a_replacement_character(tmp_path: Path):
    """As in transformers' and llama.cpp's tokenizers; and as in parquet."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "left \xff right"}\n')
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"text": "left \xff right"}\n')
    wrong = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"left \xff right"]).buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": wrong}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert list(sources.texts(Source(path=str(tmp_path / name)))) == ["left \ufffd right"], name


def test_stray_bytes_in_plain_text_are_replacement_characters(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"left \xff right " * 1 + b"word " * 100)
    assert "".join(sources.texts(Source(path=str(tmp_path / "a.txt")))).startswith("left \ufffd right word")


def test_a_mixtures_field_counts_for_files(tmp_path: Path):
    corpus = datasets.Dataset.from_dict({"text": ["no"], "body": ["yes"]})
    corpus.to_json(tmp_path / "a.jsonl")
    corpus.to_parquet(tmp_path / "b.parquet")
    file = tmp_path / "mix.toml"
    file.write_text("".join(f'[[source]]\ndata = "{name}"\nfield = "body"\n' for name in ("a.jsonl", "b.parquet", ".")))
    assert [list(sources.texts(part)) for part in mixture(Source(path=str(file)))] == [["yes"], ["yes"], ["yes", "yes"]]
    file.write_text('[[source]]\ndata = "a.jsonl"\nsplit = "test"\n')
    with pytest.raises(TsconvertError) as caught:
        list(sources.texts(mixture(Source(path=str(file)))[0]))
    assert (
        str(caught.value)
        == f"--data {tmp_path / 'a.jsonl'}: a file or folder has no subset and no split; leave them out"
    )


def test_of_a_downloaded_folder_only_the_data_is_read(tmp_path: Path):
    """As datasets takes a folder's files; it leaves the license to its patterns of suffixes."""
    names = (
        "a.txt",
        "data/b.txt",
        "data/c",
        "README.md",
        ".DS_Store",
        ".cache/huggingface/download/a.txt",
        ".hidden.txt",
    )
    for name in (*names, "LICENSE", "License.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    right = datasets.data_files.resolve_pattern("**", str(tmp_path))
    right = sorted(str(Path(file).relative_to(tmp_path)) for file in right if "license" not in file.lower())
    assert right == ["a.txt", "data/b.txt", "data/c"]
    (tmp_path / "data" / "program").write_bytes(b"\x7fELF\0\xff")
    assert list(sources.texts(Source(path=str(tmp_path)))) == right
    assert list(sources.texts(Source(path=str(tmp_path / "README.md")))) == ["README.md"]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_compressed_text_is_the_same_text(tmp_path: Path, suffix: str, form: str):
    plain, packed = (
        tmp_path / f"a.{suffix}",
        tmp_path / "packed" / f"a.{suffix}.{form[:-2] if form == 'gzip' else 'zst'}",
    )
    corpus = datasets.Dataset.from_dict({"text": [f"{i} words " * 300 for i in range(30)]})
    if suffix == "txt":
        plain.write_text("\n".join(corpus["text"]))
    else:
        getattr(corpus, "to_json" if suffix == "jsonl" else "to_parquet")(plain)
    packed.parent.mkdir()
    with pyarrow.output_stream(packed, compression=form) as stream:
        stream.write(plain.read_bytes())
    right = list(sources.texts(Source(path=str(plain)), random.Random(0)))
    assert len(right) > 2
    for path in (packed, packed.parent, tmp_path / f"other.{suffix}"):
        if not path.exists():
            packed.rename(path)
        assert list(sources.texts(Source(path=str(path)), random.Random(0))) == right, path


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_compressed_file_that_was_cut_off(tmp_path: Path, form: str):
    file = tmp_path / "a.jsonl.gz"
    with pyarrow.output_stream(str(tmp_path / "whole"), compression=form) as stream:
        stream.write(b"".join(b'{"text": "%d"}\n' % i for i in range(9999)))
    file.write_bytes((tmp_path / "whole").read_bytes()[:-500])
    with pytest.raises(TsconvertError, match=rf"a\.jsonl\.gz: is no whole {form} file \(.+\); get it again$"):
        list(sources.texts(Source(path=str(file))))


@pytest.mark.parametrize("name", ["wiki.test.raw", "a.TXT", "a.log", "a", "a.html"])
def test_a_file_that_is_named_is_read_whatever_its_suffix(tmp_path: Path, name: str):
    (tmp_path / name).write_text("one two\n")
    assert list(sources.texts(Source(path=str(tmp_path / name)))) == ["one two\n"]


def test_records_and_parquet_under_another_suffix(tmp_path: Path):
    corpus = datasets.Dataset.from_dict({"text": ["one", "two"]})
    corpus.to_json(tmp_path / "a.json")
    corpus.to_parquet(tmp_path / "blob")
    for name in ("a.json", "blob"):
        assert list(sources.texts(Source(path=str(tmp_path / name)))) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", b"text,label\nx,1\n", "a table of columns"),
        ("a.json", b'[{"text": "a"}]', "one JSON document, not an object a line"),
        ("a.json", b'{\n "text": "a"}', "one JSON document, not an object a line"),
        ("a.zip", b"PK\x03\x04", "a zip archive"),
        ("a.txt.bz2", b"BZh9", "compressed by bzip2"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF document"),
        ("m.gguf", b"GGUF\x03\0\0\0", "a GGUF model"),
        ("m.bin", b"a\0b", "a binary file"),
        ("a.raw", "a".encode("utf-16"), "UTF-16 text"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_what_it_is(tmp_path: Path, name: str, content: bytes, what: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TsconvertError) as caught:
        list(sources.texts(Source(path=str(tmp_path / name))))
    assert str(caught.value) == (
        f"{tmp_path / name}: is {what}; give UTF-8 text, .jsonl (an object with 'text' a line) or .parquet"
    )


def test_a_path_that_exists_is_a_path(tmp_path: Path):
    (tmp_path / "date=2024").mkdir()
    assert parse_source(f"{tmp_path}/date=2024") == Source(path=f"{tmp_path}/date=2024")
    assert parse_source(f"{tmp_path}/date=2024=2") == Source(path=f"{tmp_path}/date=2024", weight=2.0)


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
        "--data somebody/corpus: a record has no field 'text', but body; name one of those as field in a mixture file"
        " (.toml)"
    )


@pytest.mark.parametrize("name", ["turbosparse", "offline"])
def test_the_mixture_files_of_the_examples(name: str):
    parts = mixture(Source(path=str(Path(__file__).parents[2] / "examples" / "mixtures" / f"{name}.toml")))
    assert len(parts) >= 4
    assert sum(part.weight for part in parts) == pytest.approx(1.0)
