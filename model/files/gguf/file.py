"""Reading a GGUF model, of one file or of several shards. Tensors are views of the mapped files.

The layout is that of ggml's docs/gguf.md, versions 2 and 3, little-endian; PowerInfer's files differ in the first four
bytes and in the ids of the integer types. Shards are llama.cpp's (tools/gguf-split).
"""

import re
from pathlib import Path

from ....common.errors import TsconvertError, shown
from .parsing import GGUF as GGUF
from .parsing import MAGICS, ParsedFile
from .parsing import POWERINFER as POWERINFER
from .parsing import SPARSE as SPARSE
from .parsing import GgufTensor as GgufTensor

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
_MOST_SHARDS = 65535  # the key is 16 bits wide


class GgufFile:
    """A GGUF or PowerInfer file, or the first shard of a GGUF model, which stands for all.

    Attributes:
        path: the file.
        magic: `GGUF` or `PWRI`.
        version: 2 or 3.
        metadata: key to number, string, bool or list of those; of the first shard.
        tensors: name to `GgufTensor`, in the file's order; of all shards.

    Raises:
        TsconvertError: no GGUF file, damaged, cut off, of a version or type that is not known, or a shard is missing.

    Example:
        >>> file = GgufFile(Path("model.gguf"))  # doctest: +SKIP
        >>> file.metadata["general.architecture"], file.tensors["output_norm.weight"].shape  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        first = ParsedFile(self.path)
        self.magic, self.version, self.metadata = first.magic, first.version, first.metadata
        self.tensors: dict[str, GgufTensor] = dict(first.tensors)
        self._first = first
        self._sizes = [first.size_bytes]
        self._add_shards(first)

    @property
    def architecture(self) -> str:
        """`general.architecture`, empty where the file has none."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def size_bytes(self) -> int:
        """The bytes of the file, or of all shards."""
        return sum(self._sizes)

    @property
    def shards(self) -> int:
        """How many files hold the model."""
        return len(self._sizes)

    def encoded(self, key: str) -> bytes:
        """A key's value as it stands in the file, its type first."""
        start, end = self._first.spans[key]
        return bytes(self._first.content[start:end])

    def _add_shards(self, first: ParsedFile) -> None:
        count = first.metadata.get("split.count", 1)
        if count == 1:
            return
        if not isinstance(count, int) or not 1 < count <= _MOST_SHARDS:
            raise TsconvertError(f"{self.path}: split.count is {shown(count)}; download or write the file again")
        paths = [sibling_path(self.path, number) for number in range(count)]
        if None in paths or not str(self.path).endswith(f"-of-{count:05}.gguf"):
            raise TsconvertError(
                f"{self.path}: is one of {count} shards, and shards are called NAME-00001-of-{count:05}.gguf;"
                " give them their names again"
            )
        if first.metadata.get("split.no") != 0:
            raise TsconvertError(f"{self.path}: is not the first of {count} shards; give {paths[0]}")
        for number, path in enumerate(paths[1:], 1):
            part = ParsedFile(path)  # type: ignore[arg-type]
            if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
                raise TsconvertError(f"{path}: is not shard {number + 1} of {count}; download or write it again")
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise TsconvertError(f"{path}: damaged, tensor {name} is in another shard too; write them again")
                self.tensors[name] = tensor
            self._sizes.append(part.size_bytes)
        expected = first.metadata.get("split.tensors.count", len(self.tensors))
        if expected != len(self.tensors):
            raise TsconvertError(
                f"{self.path}: the shards hold {len(self.tensors)} tensors of {shown(expected)}; download or write them"
                " again"
            )


def shard_path(out: Path, number: int, count: int) -> Path:
    """The path of shard ``number``, from 0, of the model that would be ``out`` in one file.

    Example:
        >>> shard_path(Path("m.gguf"), 0, 3).name
        'm-00001-of-00003.gguf'
    """
    return out.with_name(f"{out.name.removesuffix('.gguf')}-{number + 1:05}-of-{count:05}.gguf")


def sibling_path(path: Path, number: int) -> Path | None:
    """The path of another shard of the model that ``path`` is a shard of, or None if it is not named as one."""
    match = _SHARD.fullmatch(path.name)
    return path.with_name(f"{match['stem']}-{number + 1:05}-of-{match['count']}.gguf") if match else None


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a file that begins as GGUF or PowerInfer files do."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) in MAGICS
