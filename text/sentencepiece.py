"""SentencePiece models (tokenizer.model): what the file says, and a `tokenizers.Tokenizer` that does as it says."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError
from ..model.files.gguf.vocabulary import BYTE, CONTROL, LONGEST_TOKEN, NORMAL, UNKNOWN, USER_DEFINED, merges_of

_VARINT_BITS = 70  # ten bytes of seven
_BPE = 2  # TrainerSpec.ModelType
Piece = tuple[str, float, int]
"""Text, score, type."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a tokenizer.model says."""

    pieces: list[Piece]
    """By id."""
    dummy_prefix: bool
    """A text gets a space in front."""
    remove_extra_whitespaces: bool
    """Spaces around a text go, and of several in a row one stays."""
    normalization: str
    """The name of the table that normalizes characters (`nmt_nfkc`, ...), empty for none."""
    special: dict[str, str]
    """The pieces of `unk_token`, `bos_token`, `eos_token` and `pad_token`, of those that it has."""


def backend_of(model: SentencePieceModel, added: Mapping[int, Any]) -> Any:
    """A `tokenizers.Tokenizer` that splits as SentencePiece does, BOS and EOS left out.

    Control pieces and what was added are found in the text as it stands, and the space in front of a text goes before
    each stretch between them, as transformers' LlamaTokenizer and llama.cpp have it; pieces that the model's maker
    defined are found in the normalized text, as SentencePiece has it.

    Args:
        added: `tokenizers.AddedToken` by id; one whose id a piece has takes its place.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    names = {index: piece for index, (piece, _, _) in enumerate(model.pieces)}
    names |= {index: str(token.content) for index, token in added.items()}
    normal = {piece: index for index, (piece, _, kind) in enumerate(model.pieces) if kind == NORMAL}
    unknown = model.special.get("unk_token")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: index for index, name in names.items()},
            merges=merges_of(normal, [score for _, score, _ in model.pieces]), unk_token=unknown, fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    defined = [piece for piece, _, kind in model.pieces if kind == USER_DEFINED]
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model, defined))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []),
        ]
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in defined])
    for index, (piece, _, kind) in enumerate(model.pieces):
        if kind in (CONTROL, UNKNOWN) and index not in added:
            tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True)])
    for _, token in sorted(added.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _normalizers(model: SentencePieceModel, defined: Sequence[str]) -> list[Any]:
    """The steps of SentencePiece's Normalizer::Normalize (normalizer.cc)."""
    import re

    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix and not defined:
        steps.append(normalizers.Prepend("▁"))
    elif model.dummy_prefix:  # the library normalizes the defined pieces themselves too: they must stay as they are
        themselves = "|".join(re.escape(piece) for piece in defined)
        steps.append(normalizers.Replace(Regex(rf"\A(?!(?:{themselves})\z)(?=[\s\S])"), "▁"))
    steps.append(normalizers.Replace(" ", "▁"))
    return [*steps, normalizers.Replace(Regex(r"▁+\z"), "")] if model.remove_extra_whitespaces else steps


def read_model(path: Path) -> SentencePieceModel:
    """What a SentencePiece model says (sentencepiece_model.proto).

    Raises:
        TsconvertError: the file is damaged, a unigram model, which merges otherwise, or one with spaces behind words.
    """
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        normalization = bytes(normalizer.get(1, b"unnamed")).decode() if normalizer.get(2) else ""
        special = _special(trainer, pieces)
    except (IndexError, ValueError, TypeError, AttributeError, struct.error):
        raise TsconvertError(f"{path}: not a SentencePiece model that can be read; download it again") from None
    if not pieces or trainer.get(3, 1) != _BPE:
        raise TsconvertError(
            f"{path}: not a SentencePiece BPE model, the only kind that GGUF has; this model cannot be exported with it"
        )
    if not normalizer.get(5, 1) or trainer.get(24, 0):
        setting = "treat_whitespace_as_suffix" if trainer.get(24, 0) else "escape_whitespaces = false"
        raise TsconvertError(f"{path}: the SentencePiece model has {setting}, which tsconvert does not compute")
    return SentencePieceModel(
        pieces=pieces, dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)), normalization=normalization, special=special,
    )  # fmt: skip


def _special(trainer: Mapping[int, Any], pieces: Sequence[Piece]) -> dict[str, str]:
    """By the ids of TrainerSpec; unused ones are negative there, as 64-bit complements."""
    found = {}
    ids = {"unk_token": (40, 0), "bos_token": (41, 1), "eos_token": (42, 2), "pad_token": (43, -1)}
    for name, (number, default) in ids.items():
        index = int(trainer.get(number, default))
        if 0 <= index < len(pieces) and pieces[index][2] in (UNKNOWN, CONTROL):
            found[name] = pieces[index][0]
    for piece, _, kind in pieces:
        if kind == UNKNOWN:
            found["unk_token"] = piece
    return found


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(message):
        if number == 1:
            text = value.decode("utf-8")
        elif number == 2:
            score = struct.unpack("<f", value)[0]
        elif number == 3:
            kind = value
    if not isinstance(kind, int) or not NORMAL <= kind <= BYTE or len(text) > LONGEST_TOKEN:
        raise ValueError("no type of piece, or no piece that any model has")
    return text, score, kind


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) pairs of a protocol buffer message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if size is None:
            if wire != 2:
                raise ValueError(f"wire type {wire}")
            size, at = _varint(message, at)
        if at + size > len(message):
            raise ValueError("cut off")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < _VARINT_BITS:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
