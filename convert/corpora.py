"""Text for calibration and recovery: files, folders and data sets, as packed rows of tokens in a seeded order."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import models
from .checkpoint import Checkpoint
from .errors import TsconvertError
from .progress import note

_PIECE_BYTES = 16_384
_LONG_WORD_BYTES = 256
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text", "")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One `--data` argument."""

    path: str
    """A text, .jsonl or .parquet file, a folder of them, or the name of a `datasets` data set."""
    weight: float = 1.0
    """Its share of the tokens, relative to the other sources'."""


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a checkpoint folder; no code of the folder's is run.

    Raises:
        TsconvertError: there is none, or it cannot be read.
    """
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        kind = PreTrainedTokenizerFast
    elif (folder / "tokenizer.model").is_file():
        kind = LlamaTokenizer
    else:
        raise TsconvertError(f"{folder}: no tokenizer (tokenizer.json or tokenizer.model); copy the model's own there")
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise TsconvertError(f"{folder}: the tokenizer cannot be read ({error}); copy the model's own there") from error
    tokenizer.model_max_length = 10**30  # rows are cut to the context later: no warning about long texts
    return tokenizer


def parse_source(argument: str) -> Source:
    """`web.txt=0.75` as a Source.

    Raises:
        TsconvertError: the weight is no positive number.
    """
    path, equals, weight = argument.rpartition("=")
    if not equals:
        return Source(path=argument)
    try:
        share = float(weight)
    except ValueError:
        return Source(path=argument)
    if not 0 < share < float("inf"):
        raise TsconvertError(f"--data {argument}: the weight must be a number above 0")
    return Source(path=path, weight=share)


def calibration_rows(
    checkpoint: Checkpoint, sources: Sequence[Source], *, tokens: int, context: int, seed: int = 0
) -> npt.NDArray[np.int64]:
    """The rows [N, S] that a stage looks at: `token_rows` with the checkpoint's tokenizer.

    Args:
        sources: empty takes the embedded text, and says so.
        context: tokens a row, S; cut to the model's own context.

    Returns:
        N of at least 2, so that one row can be kept back.

    Raises:
        TsconvertError: as `token_rows`, or fewer than two rows.
    """
    tokenizer = load_tokenizer(checkpoint.folder)
    if not sources:
        note("no --data: taking the embedded English text (State of the Union addresses, Moby-Dick)")
        sources = (Source(path=str(models.text("train.txt"))),)
    context = min(context, checkpoint.spec.context)
    rows = token_rows(tokenizer, sources, tokens=tokens, context=context, seed=seed)
    if len(rows) < 2:
        raise TsconvertError(f"--tokens {tokens}: {len(rows)} sequence of {context} tokens; ask for at least two")
    return rows


def token_rows(
    tokenizer: Any, sources: Sequence[Source], *, tokens: int, context: int, seed: int = 0
) -> npt.NDArray[np.int64]:
    """``tokens`` tokens drawn from the sources by weight, packed into rows of ``context``.

    Text files are cut into pieces of about 16 KB at line or word ends; pieces and records are drawn in a seeded random
    order, so that a few tokens of a large corpus are still spread over all of it.

    Args:
        tokenizer: a transformers tokenizer; its own special tokens begin each piece.

    Returns:
        [N, context], N at least 1.

    Raises:
        TsconvertError: a source is missing, unreadable, or has too little text.
    """
    rng = random.Random(seed)
    total_weight = sum(source.weight for source in sources)
    rows: list[npt.NDArray[np.int64]] = []
    for source in sources:
        share = max(context, round(tokens * source.weight / total_weight))
        rows.append(_source_rows(tokenizer, source, share, context, rng))
    packed = np.concatenate(rows)
    return packed[np.random.default_rng(seed).permutation(len(packed))]


def ordered_texts(path: str) -> Iterator[str]:
    """The texts at ``path`` (as in `Source`), in order, for scoring.

    Raises:
        TsconvertError: it is missing or unreadable.
    """
    return _texts(Source(path=path), None)


def spaced_rows(
    encode: Callable[[str], list[int]], path: str, *, tokens: int | None, context: int
) -> npt.NDArray[np.int64]:
    """Rows [N, context] of the text at ``path``, in order, for perplexity.

    Where the text has more than ``tokens`` tokens, the rows are spaced evenly over it (over its first 64 times
    ``tokens``), so that a few rows still speak for all of its documents.
    """
    stream: list[int] = []
    for text in _texts(Source(path=path), None):
        stream += encode(text)
        if tokens is not None and len(stream) >= 64 * tokens:
            break
    count = len(stream) // context
    if not count:
        raise TsconvertError(f"{path}: {len(stream)} tokens, which is not one row of {context}; give more text")
    rows = np.asarray(stream[: count * context], np.int64).reshape(count, context)
    wanted = count if tokens is None else max(1, min(count, tokens // context))
    return np.asarray(rows[np.arange(wanted) * count // wanted])


def _source_rows(
    tokenizer: Any, source: Source, tokens: int, context: int, rng: random.Random
) -> npt.NDArray[np.int64]:
    stream: list[int] = []
    need = -(-tokens // context) * context
    for text in _texts(source, rng):
        stream += tokenizer(text).input_ids
        if len(stream) >= need:
            break
    if len(stream) < context:
        raise TsconvertError(
            f"--data {source.path}: {len(stream)} tokens, which is not one row of {context}; give more text"
        )
    usable = min(len(stream), need) // context * context
    return np.asarray(stream[:usable], np.int64).reshape(-1, context)


def _texts(source: Source, rng: random.Random | None) -> Iterator[str]:
    """The source's pieces of text, shuffled by ``rng``, in their own order without."""
    path = Path(source.path)
    if not path.exists():
        yield from _dataset_texts(source.path)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    pieces = [piece for file in files for piece in _pieces(file, whole=rng is None)]
    if rng is not None:
        rng.shuffle(pieces)
    for file, start, end in pieces:
        yield _read_piece(file, start, end)


def _pieces(file: Path, *, whole: bool) -> list[tuple[Path, int, int]]:
    """Byte ranges of a file that are texts of their own."""
    size = file.stat().st_size
    if file.suffix == ".parquet":
        return [(file, row, row + 1) for row in range(_parquet(file).num_row_groups)]
    if file.suffix == ".jsonl":
        return _line_ranges(file)
    if file.suffix not in TEXT_SUFFIXES or not size:
        return []
    if whole:
        return [(file, 0, size)]
    return [(file, start, min(start + _PIECE_BYTES, size)) for start in range(0, size, _PIECE_BYTES)]


def _line_ranges(file: Path) -> list[tuple[Path, int, int]]:
    ranges, start = [], 0
    with file.open("rb") as stream:
        for line in stream:
            if line.strip():
                ranges.append((file, start, start + len(line)))
            start += len(line)
    return ranges


def _read_piece(file: Path, start: int, end: int) -> str:
    if file.suffix == ".parquet":
        return "\n".join(map(str, _parquet(file).read_row_group(start, columns=["text"])["text"].to_pylist()))
    if file.suffix == ".jsonl":
        return _record_text(file, _read(file, start, end))
    begin, stop = _word_end(file, start), _word_end(file, end)
    try:
        return _read(file, begin, stop).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TsconvertError(
            f"{file}: not UTF-8 text (byte {begin + error.start}); give text, .jsonl or .parquet"
        ) from None


def _read(file: Path, start: int, end: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(end - start)


def _word_end(file: Path, position: int) -> int:
    """Where the text may be cut, at ``position`` or soon after: behind a space or line end, else before a character."""
    if position == 0:
        return 0
    near = _read(file, position - 1, position + _LONG_WORD_BYTES)
    space = next((i for i, byte in enumerate(near) if byte in b" \n"), None)
    if space is not None:
        return position + space
    return position + next((i for i, byte in enumerate(near[1:]) if byte & 0xC0 != 0x80), len(near) - 1)


def _record_text(file: Path, raw: bytes) -> str:
    try:
        record = json.loads(raw)
        return str(record["text"])
    except (ValueError, KeyError, TypeError):
        raise TsconvertError(
            f"{file}: a line is no JSON object with a field 'text'; fix it or leave the file out"
        ) from None


def _parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise TsconvertError(f"{file}: reading parquet needs pyarrow; pip install 'tsconvert[data]'") from None
    return pyarrow.parquet.ParquetFile(file)


def _dataset_texts(name: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise TsconvertError(
            f"--data {name}: no such file or folder (a data set of the hub needs: pip install 'tsconvert[data]')"
        ) from None
    try:
        records = datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:
        raise TsconvertError(
            f"--data {name}: no such file or folder, nor a data set ({type(error).__name__})"
        ) from error
    for record in records:
        yield str(record["text"])
