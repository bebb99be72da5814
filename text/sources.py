"""Sources of text: files, folders, data sets and mixtures of them, as pieces of text in a seeded order."""

import json
import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, reason

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILE_ENDINGS = (".txt", ".md", ".json", ".jsonl", ".parquet", ".csv", ".gz", ".zst", ".toml")
_PIECE_BYTES = 16_384
_LONG_WORD_BYTES = 256
_SHUFFLED_RECORDS = 1000  # of a streamed data set, at a time
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text", "")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One `--data` argument."""

    path: str
    """A text, .jsonl or .parquet file, a folder of them, a mixture file (.toml), or a `datasets` data set's name."""
    weight: float = 1.0
    """Its share of the tokens, relative to the other sources'."""
    subset: str | None = None
    """The configuration of a data set."""
    split: str = "train"
    """The split of a data set."""
    field: str = "text"
    """The field of a data set's records that holds the text."""


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
        raise TsconvertError(f"--data {argument}: the weight must be a number above 0, as in FILE=0.5")
    return Source(path=path, weight=share)


def mixture(source: Source) -> list[Source]:
    """The sources that a mixture file (.toml) lists, weights relative to its own; any other source as it is.

    Each `[[source]]` has `data` (a path, from the file's folder, or a data set's name), `weight`, and for data sets
    `subset`, `split`, `field`.

    Raises:
        TsconvertError: the file cannot be read, or lists something else.
    """
    file = Path(source.path)
    if file.suffix != ".toml":
        return [source]
    try:
        listed = tomllib.loads(file.read_text(encoding="utf-8"))["source"]
        parts = [Source(path=entry.pop("data"), **entry) for entry in listed]
        total = sum(part.weight for part in parts)
        if not total > 0 or any(part.weight < 0 for part in parts):
            raise ValueError("weights must be above 0")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TsconvertError(
            f"{file}: no mixture file ({error}); it lists [[source]] tables with data, weight, subset, split and field"
        ) from None
    beside = [file.parent / part.path for part in parts]
    paths = [str(own) if own.exists() else part.path for own, part in zip(beside, parts, strict=True)]
    return [
        replace(part, path=path, weight=source.weight * part.weight / total)
        for part, path in zip(parts, paths, strict=True)
    ]


def texts(source: Source, rng: random.Random | None = None) -> Iterator[str]:
    """The source's pieces of text, shuffled by ``rng``; without it whole files and records, in their own order.

    Raises:
        TsconvertError: it is missing or unreadable.
    """
    path = Path(source.path)
    if not path.exists():
        yield from _dataset_texts(source, rng)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    pieces = [piece for file in files for piece in _pieces(file, whole=rng is None)]
    if rng is not None:
        rng.shuffle(pieces)
    for file, start, end in pieces:
        yield _read_piece(file, start, end)


def _pieces(file: Path, *, whole: bool) -> list[tuple[Path, int, int]]:
    """The byte ranges of a file's pieces of text."""
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
        return _parquet_text(file, start)
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
    """The next offset from ``position`` where text may be cut: after a space or line end, else before a character."""
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
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TsconvertError(
            f"{file}: a line is no JSON object with a field 'text'; fix it or leave the file out"
        ) from None


def _parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise TsconvertError(f"{file}: reading parquet needs pyarrow; pip install 'tsconvert[data]'") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise TsconvertError(f"{file}: is no parquet file ({reason(error)}); get it again") from None


def _parquet_text(file: Path, group: int) -> str:
    import pyarrow

    try:
        records = _parquet(file).read_row_group(group, columns=["text"])["text"].to_pylist()
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise TsconvertError(f"{file}: has no column 'text' that can be read ({reason(error)}); get it again") from None
    return "\n".join(map(str, records))


def _dataset_texts(source: Source, rng: random.Random | None) -> Iterator[str]:
    name = source.path
    # without a network the hub is asked for half a minute
    if not _HUB_NAME.fullmatch(name) or name.lower().endswith(_FILE_ENDINGS):
        raise TsconvertError(f"--data {name}: no such file or folder; look at the path")
    try:
        import datasets
    except ImportError:
        raise TsconvertError(
            f"--data {name}: no such file or folder (a data set of the hub needs: pip install 'tsconvert[data]')"
        ) from None
    try:
        records = datasets.load_dataset(name, source.subset, split=source.split, streaming=True)
        if rng is not None:
            records = records.shuffle(seed=rng.randrange(2**31), buffer_size=_SHUFFLED_RECORDS)
    except Exception as error:
        raise TsconvertError(
            f"--data {name}: no such file or folder, and the hub gave no such data set ({type(error).__name__}); look"
            " at the path, or at the name and the network"
        ) from error
    for record in records:
        if source.field not in record:
            raise TsconvertError(
                f"--data {name}: its records have no field {source.field!r}, but {', '.join(record)}; name one of those"
                " as field in a mixture file (.toml)"
            )
        yield str(record[source.field])
