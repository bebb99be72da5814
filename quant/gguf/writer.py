"""The GGUF container: header, tensor table, and where each tensor's data lie.

GGUF version 3, little-endian (ggml/docs/gguf.md). gguf-py's writer wants every tensor whole and knows one magic; here a
tensor comes in pieces, so that experts are stacked and embeddings encoded without ever being in memory together.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from ...model.files.gguf import ggml
from .parallel_file import ParallelFile
from .tensor_plan import TensorPlan
from .tensor_writer import write_tensors
from .values import Value, Verbatim, encode_string

GGUF_MAGIC = b"GGUF"
POWERINFER_MAGIC = b"PWRI"
VERSION = 3
ALIGNMENT = 32
_POWERINFER_I32 = 18  # older than ggml's number of today
Metadata = Mapping[str, Value | Verbatim]


def header(metadata: Metadata, tensors: Sequence[TensorPlan], magic: bytes = GGUF_MAGIC) -> bytes:
    """Everything before the tensors' data, padded to where the data begins."""
    parts = [magic, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [encode_string(key), value.encode()]
    for tensor, offset in _layout(tensors):
        old = magic == POWERINFER_MAGIC and tensor.type_name == "I32"
        type_id = _POWERINFER_I32 if old else ggml.TYPES[tensor.type_name].id
        dims = tensor.shape[::-1]
        parts += [
            encode_string(tensor.name),
            struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
            struct.pack("<IQ", type_id, offset),
        ]
    whole = b"".join(parts)
    return whole + b"\0" * (padded(len(whole)) - len(whole))


def file_size(metadata: Metadata, tensors: Sequence[TensorPlan]) -> int:
    """The bytes that the file will have."""
    return len(header(metadata, tensors)) + sum(padded(tensor.size_bytes) for tensor in tensors)


def tensor_bytes(tensor: TensorPlan) -> int:
    """The most bytes that one more tensor adds to a file: entry, data, padding."""
    entry = len(encode_string(tensor.name)) + 4 + 8 * len(tensor.shape) + 4 + 8
    return padded(entry) + padded(tensor.size_bytes)


def write_gguf(
    stream: BinaryIO,
    metadata: Metadata,
    tensors: Sequence[TensorPlan],
    *,
    magic: bytes = GGUF_MAGIC,
    step: Callable[[str], None] = lambda _: None,
    threads: int | None = None,
) -> None:
    """Write a GGUF file, a piece of a tensor a thread in memory at a time.

    Args:
        stream: an empty file on a disk; its position is not moved.
        metadata: in the order of the file.
        tensors: in the order of the file; `check_tensors` has found their values sound.
        magic: the first four bytes.
        step: called with a tensor's name when it is written.
        threads: None takes the cores that the process may use.

    Raises:
        TsconvertError: the disk is full.
    """
    head = header(metadata, tensors, magic)
    with ParallelFile(stream, file_size(metadata, tensors)) as file:
        file.write(0, head)
        write_tensors(file, [(tensor, len(head) + start) for tensor, start in _layout(tensors)], step, threads)


def _layout(tensors: Sequence[TensorPlan]) -> Iterator[tuple[TensorPlan, int]]:
    """Each tensor and where its data begin, from the end of the header."""
    offset = 0
    for tensor in tensors:
        yield tensor, offset
        offset += padded(tensor.size_bytes)


def padded(size: int) -> int:
    """The bytes that data of ``size`` take up."""
    return -(-size // ALIGNMENT) * ALIGNMENT
