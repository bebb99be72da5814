from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.scoring.windowing import Windowing
from tsconvert.evaluate.scoring.windows import cut
from tsconvert.text.sources import Source


def encode(text: str) -> list[int]:
    """BOS, then the numbers in the text."""
    return [1, *map(int, text.split())]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """99 tokens, 100 with BOS."""
    path = tmp_path / "t.txt"
    path.write_text(" ".join(str(100 + i) for i in range(99)))
    return path


def windows(text: Path, bos: int | None = 1, **how):
    return cut(encode, bos, (Source(path=str(text)),), Windowing(**how))


def test_llama_cpp_begins_each_chunk_with_bos_and_counts_its_second_half(text: Path):
    found = windows(text, context=16, chunks=3)
    assert found.rows_NS.shape == (3, 16)
    assert found.rows_NS[0, :3].tolist() == [1, 100, 101]
    assert found.rows_NS[1, :3].tolist() == [1, 116, 117]  # 115 gave way
    assert found.rows_NS[2, -1] == 146
    assert found.first_N == [8, 8, 8]
    assert found.counted == 3 * (16 - 8 - 1)


def test_a_tokenizer_without_bos_loses_no_token(text: Path):
    assert windows(text, bos=None, context=16, chunks=2).rows_NS[1, :2].tolist() == [115, 116]


def test_llama_cpp_with_a_stride_counts_the_last_tokens_of_each_window(text: Path):
    found = windows(text, context=32, stride=8, chunks=100)
    assert len(found.rows_NS) == (100 - 32 + 7) // 8
    assert found.rows_NS[1, :2].tolist() == [107, 108]
    assert set(found.first_N) == {32 - 8 - 1}


def test_papers_count_every_token_but_the_first_of_windows_that_do_not_overlap(text: Path):
    found = windows(text, context=20, method="papers")
    assert found.rows_NS[1, 0] == 119
    assert found.first_N == [0] * 5
    assert found.counted == 5 * 19


def test_papers_count_each_token_of_sliding_windows_once(text: Path):
    found = windows(text, context=20, stride=5, method="papers")
    targets = [
        int(token)
        for row_S, first in zip(found.rows_NS, found.first_N, strict=True)
        for token in row_S[first + 1 :]
    ]  # fmt: skip
    assert targets == list(range(100, 199))


def test_windows_are_spread_over_the_text_unless_chunks_are_asked_for(text: Path):
    assert windows(text, context=10, tokens=20).rows_NS[:, 1].tolist() == [100, 150]
    assert windows(text, context=10, chunks=2).rows_NS[:, 1].tolist() == [100, 110]


def test_corpora_share_the_tokens_by_weight(text: Path, tmp_path: Path):
    (tmp_path / "u.txt").write_text(text.read_text())
    sources = (Source(path=str(text), weight=3), Source(path=str(tmp_path / "u.txt"), weight=1))
    found = cut(encode, 1, sources, Windowing(context=10, tokens=40))
    assert found.corpus_N == [0, 0, 0, 1]
    assert found.corpora == [str(text), str(tmp_path / "u.txt")]
    mixture = tmp_path / "mix.toml"
    mixture.write_text('[[source]]\ndata = "t.txt"\nweight = 3\n[[source]]\ndata = "u.txt"\n')
    same = cut(encode, 1, (Source(path=str(mixture)),), Windowing(context=10, tokens=40))
    assert (same.corpus_N, same.corpora) == (found.corpus_N, found.corpora)


def test_a_text_that_is_too_short(text: Path):
    with pytest.raises(TsconvertError) as caught:
        windows(text, context=128)
    assert str(caught.value) == f"{text}: 100 tokens, which is not one window of 128; give more text"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "gptq"}, "--method is 'gptq': it must be one of llama.cpp, papers"),
        ({"context": 2}, "--ctx is 2: it must be at least 4"),
        ({"stride": 512}, "--stride is 512: it must be at least 1 and less than --ctx 512"),
        ({"chunks": 0}, "--chunks is 0: it must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(how: dict, said: str):
    with pytest.raises(TsconvertError) as caught:
        Windowing(**how)
    assert str(caught.value) == said
