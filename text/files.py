"""Files of text as pieces that can be read in any order: plain text, a JSON object a line, parquet; also compressed."""

import gzip
import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, reason
from .records import text_of

_PIECE_BYTES = 16_384
_BAD_SHARE = 0.01  # of a text's characters that may be bytes that are no UTF-8
_LONG_WORD_BYTES = 256
_BLOCK_BYTES = 1 << 20
_READ_AHEAD = (64, 2048)  # pieces whose parquet rows are read together: at first, and at most
_KINDS = {
    **dict.fromkeys((".txt", ".md", ".rst", ".py", ".text", ""), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"), ".parquet": "parquet",
}  # fmt: skip
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_COMPRESSED_SUFFIXES = (".gz", ".zst")
_OTHERS = {
    b"PK": "a zip archive", b"BZh": "compressed by bzip2", b"\xfd7zXZ": "compressed by xz", b"7z": "a 7z archive",
    b"%PDF": "a PDF document", b"GGUF": "a GGUF model", b"ARROW1": "an Arrow file", b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}  # fmt: skip
_ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "contributing",
          "code_of_conduct", "use_policy")  # fmt: skip


@dataclass(frozen=True)
class TextFile:
    """A file, and how to read it."""

    name: Path
    """As the user knows it."""
    path: Path
    """The same file, or its decompressed copy."""
    kind: str
    """`text`, `jsonl` or `parquet`."""


Piece = tuple[TextFile, int, int]
"""The first byte of a piece and the one behind its last; in parquet the row group, and the row in it."""


def text_files(path: Path, copies: ExitStack) -> list[TextFile]:
    """The file ``path``, whatever its suffix, or the files of text in that folder.

    Of a folder, hidden files and folders are left out, what is about the folder (README, LICENSE and the like), and
    binary files without a suffix.

    Args:
        copies: closes with the decompressed copies of compressed files.

    Raises:
        TsconvertError: ``path`` is a file that holds no text, or a compressed file is damaged.
    """
    if not path.is_dir():
        return [_given(path, copies)]
    found = []
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        inside = file.relative_to(path)
        if any(part.startswith(".") for part in inside.parts) or file.name.lower().split(".")[0] in _ABOUT:
            continue
        packed = file.suffix.lower() in _COMPRESSED_SUFFIXES
        kind = _KINDS.get((Path(file.stem) if packed else file).suffix.lower())
        if kind is not None and (file.suffix or b"\0" not in _head(file)):
            found.append(TextFile(file, _decompressed(file, copies) if packed else file, kind))
    return found


def _given(file: Path, copies: ExitStack) -> TextFile:
    path, name = file, file
    if _head(file)[:2] in _COMPRESSED or _head(file)[:4] in _COMPRESSED:
        path = _decompressed(file, copies)
        name = Path(file.stem) if file.suffix.lower() in _COMPRESSED_SUFFIXES else file
    kind = "parquet" if _head(path).startswith(b"PAR1") else _KINDS.get(name.suffix.lower())
    return TextFile(file, path, kind or _kind_of_content(file, path, name.suffix.lower()))


def _kind_of_content(file: Path, path: Path, suffix: str) -> str:
    """How to read a file whose suffix says nothing; ``path`` is ``file``, decompressed."""
    head, kind = _head(path), "text"
    what = next((what for magic, what in _OTHERS.items() if head.startswith(magic)), None)
    if what is None and b"\0" in head:
        what = "a binary file"
    if what is None and suffix in (".csv", ".tsv"):
        what = "a table of columns"
    if what is None and suffix == ".json":
        what = None if _begins_with_record(path) else "one JSON document, not an object a line"
        kind = "jsonl"
    if what is not None:
        raise TsconvertError(f"{file}: is {what}; give UTF-8 text, .jsonl (an object with 'text' a line) or .parquet")
    return kind


def _begins_with_record(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            return isinstance(json.loads(stream.readline().decode("utf-8-sig", "replace")), dict)
        except (ValueError, RecursionError):
            return False


def _head(file: Path) -> bytes:
    return _read(file, 0, 65_536)


def _decompressed(file: Path, copies: ExitStack) -> Path:
    """A decompressed copy in the folder for temporary files."""
    copy = Path(copies.enter_context(tempfile.TemporaryDirectory(prefix="tsconvert-"))) / "text"
    with copy.open("wb") as target:
        for block in _blocks(file):
            target.write(block)
    return copy


def _blocks(file: Path) -> Iterator[bytes]:
    form = "gzip" if _head(file)[:2] in _COMPRESSED else "zstd"
    try:
        with gzip.open(file) if form == "gzip" else _zstd(file) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (EOFError, zlib.error, OSError) as error:
        raise TsconvertError(f"{file}: is no whole {form} file ({reason(error)}); get it again") from None


def _zstd(file: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise TsconvertError(f"{file}: reading zstd needs pyarrow; pip install 'tsconvert[data]'") from None
    return pyarrow.input_stream(str(file), compression="zstd")


def pieces(file: TextFile, *, whole: bool) -> list[Piece]:
    """The pieces of a file: a record each, or about 16 KB of plain text.

    Args:
        whole: plain text is one piece.
    """
    if file.kind == "parquet":
        groups = _parquet(file).metadata
        return [(file, i, row) for i in range(groups.num_row_groups) for row in range(groups.row_group(i).num_rows)]
    if file.kind == "jsonl":
        return _line_ranges(file)
    size = file.path.stat().st_size
    if whole or not size:
        return [(file, 0, size)] if size else []
    return [(file, start, min(start + _PIECE_BYTES, size)) for start in range(0, size, _PIECE_BYTES)]


def _line_ranges(file: TextFile) -> list[Piece]:
    ranges, start = [], 0
    with file.path.open("rb") as stream:
        for line in stream:
            if line.strip():
                ranges.append((file, start, start + len(line)))
            start += len(line)
    return ranges


def read_pieces(wanted: Sequence[Piece], field: str) -> Iterator[str | None]:
    """The texts of pieces, in their order; None for a record whose ``field`` is null.

    Raises:
        TsconvertError: a file is no UTF-8, or a record has no text in ``field``.
    """
    start, count = 0, _READ_AHEAD[0]
    groups = _RowGroups(field)
    while start < len(wanted):
        ahead = wanted[start : start + count]
        rows = groups.texts([piece for piece in ahead if piece[0].kind == "parquet"])
        for piece in ahead:
            kind = piece[0].kind
            yield rows[piece] if kind == "parquet" else (_record if kind == "jsonl" else _plain)(*piece, field)
        start, count = start + count, min(2 * count, _READ_AHEAD[1])


def _plain(file: TextFile, start: int, end: int, field: str) -> str:  # noqa: ARG001
    begin, stop = _word_end(file.path, start), _word_end(file.path, end)
    raw = _read(file.path, begin, stop)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        text = raw.decode("utf-8", "replace")
        if text.count("\ufffd") <= _BAD_SHARE * len(text):  # stray bytes, as in a record
            return text
        raise TsconvertError(
            f"{file.name}: not UTF-8 text (byte {begin + error.start}); give text, .jsonl or .parquet"
        ) from None


def _record(file: TextFile, start: int, end: int, field: str) -> str | None:
    try:
        try:
            record = json.loads(_read(file.path, start, end).decode("utf-8-sig", "replace"))
        except (ValueError, RecursionError):
            record = None
        return text_of(record, field)
    except TsconvertError as error:
        line = _read(file.path, 0, start).count(b"\n") + 1
        raise TsconvertError(f"{file.name}: line {line} {error}") from None


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


class _RowGroups:
    """Rows of parquet files: a row group is read once for all rows that are wanted of it, the last one is kept."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._last: tuple[tuple[TextFile, int], Any] | None = None

    def texts(self, wanted: Sequence[Piece]) -> dict[Piece, str | None]:
        """The text of each row."""
        found = {}
        for piece in sorted(wanted, key=lambda piece: (str(piece[0].path), *piece[1:])):
            file, group, row = piece
            try:
                found[piece] = text_of({self._field: _value(self._column(file, group)[row])}, self._field)
            except TsconvertError as error:
                before = sum(_parquet(file).metadata.row_group(i).num_rows for i in range(group))
                raise TsconvertError(f"{file.name}: row {before + row + 1} {error}") from None
        return found

    def _column(self, file: TextFile, group: int) -> Any:
        if self._last is None or self._last[0] != (file, group):
            self._last = None
            self._last = (file, group), self._read(file, group)
        return self._last[1]

    def _read(self, file: TextFile, group: int) -> Any:
        import pyarrow

        parquet = _parquet(file)
        names = parquet.schema_arrow.names
        if self._field not in names:
            text_of(dict.fromkeys(names), self._field)
        try:
            return parquet.read_row_group(group, columns=[self._field])[self._field]
        except (pyarrow.ArrowException, OSError) as error:
            raise TsconvertError(f"cannot be read ({reason(error)}); get the file again") from None


def _value(cell: Any) -> Any:
    """A cell of a column as Python has it; bytes that are no UTF-8 become U+FFFD, as in .jsonl."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return cell.as_buffer().to_pybytes().decode("utf-8", "replace")


def _parquet(file: TextFile) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise TsconvertError(f"{file.name}: reading parquet needs pyarrow; pip install 'tsconvert[data]'") from None
    try:
        return pyarrow.parquet.ParquetFile(file.path)
    except (pyarrow.ArrowException, OSError) as error:
        raise TsconvertError(f"{file.name}: is no parquet file ({reason(error)}); get it again") from None
