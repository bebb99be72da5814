"""Sources of text: files, folders, data sets and mixtures of them, as pieces of text in a seeded order."""

import random
import re
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ..common.errors import TsconvertError
from ..common.progress import note
from .files import pieces, read_pieces, text_files
from .records import text_of

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILE_ENDINGS = (".txt", ".md", ".json", ".jsonl", ".parquet", ".csv", ".gz", ".zst", ".toml", ".raw")
_SHUFFLED_RECORDS = 1000  # of a streamed data set, at a time


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
    """The field of records (a data set's, a .jsonl or .parquet file's) that holds the text."""


def parse_source(argument: str) -> Source:
    """`web.txt=0.75` as a Source.

    Raises:
        TsconvertError: the weight is no positive number.
    """
    path, equals, weight = argument.rpartition("=")
    if not equals or Path(argument).exists():
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

    Each `[[source]]` has `data` (a path, from the file's folder, or a data set's name), `weight`, `field`, and for
    data sets `subset` and `split`.

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

    Records whose text is null are left out; when the iterator ends or is closed, their number is said.

    Raises:
        TsconvertError: it is missing or unreadable, or a record has no text.
    """
    nulls = 0
    with ExitStack() as copies:
        path = Path(source.path)
        found = _file_texts(path, source, rng, copies) if path.exists() else _dataset_texts(source, rng)
        try:
            for text in found:
                if text is None:
                    nulls += 1
                else:
                    yield text
        finally:
            if nulls:
                note(f"--data {source.path}: {nulls} records without text (null) were left out")


def _file_texts(path: Path, source: Source, rng: random.Random | None, copies: ExitStack) -> Iterator[str | None]:
    if source.subset is not None or source.split != "train":
        raise TsconvertError(f"--data {path}: a file or folder has no subset and no split; leave them out")
    found = [piece for file in text_files(path, copies) for piece in pieces(file, whole=rng is None)]
    if rng is not None:
        rng.shuffle(found)
    yield from read_pieces(found, source.field)


def _dataset_texts(source: Source, rng: random.Random | None) -> Iterator[str | None]:
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
        try:
            yield text_of(record, source.field)
        except TsconvertError as error:
            raise TsconvertError(f"--data {name}: a record {error}") from None
