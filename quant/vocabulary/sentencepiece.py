"""SentencePiece vocabularies: pieces and scores from tokenizer.model, or derived from a tokenizer.json of that kind."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import read_json_object
from ...model.files.gguf.vocabulary import (
    BYTE,
    CONTROL,
    LONGEST_TOKEN,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    merges_of,
)
from .vocabulary import ADDED_SCORE, Vocabulary, looks_special

_VARINT_BITS = 70  # ten bytes of seven
_BPE = 2  # TrainerSpec.ModelType (sentencepiece_model.proto)
Piece = tuple[str, float, int]
"""Text, score, type."""


def read(content: dict[str, Any], model_file: Path) -> Vocabulary:
    """The vocabulary of a tokenizer.json with byte fallback, with tokenizer.model's scores where that file is there.

    Both rank merges: SentencePiece by the score of the piece that results, tokenizer.json by the order of its merges.

    Raises:
        TsconvertError: tokenizer.model is no SentencePiece BPE model.
    """
    vocab: dict[str, int] = content["model"]["vocab"]
    pieces = read_model(model_file)[0] if model_file.is_file() else _derived(content)
    added = {token["id"]: token for token in content.get("added_tokens", [])}
    size = max([len(pieces) - 1, *vocab.values(), *added]) + 1
    by_id = {index: piece for piece, index in vocab.items()}
    tokens, scores, types = [], [], []
    for index in range(size):
        piece, score, kind = pieces[index] if index < len(pieces) else (by_id.get(index, ""), ADDED_SCORE, NORMAL)
        if index in added:
            piece, kind = _added(added[index], piece, kind)
        elif not piece:
            piece = f"[PAD{index}]"
        tokens.append(piece)
        scores.append(score)
        types.append(kind)
    return Vocabulary(model="llama", pre="default", tokens=tokens, scores=scores, types=types)


def correct(hf: Any, model_file: Path) -> None:
    """Make transformers' tokenizer of a folder that has tokenizer.model alone split as SentencePiece does.

    transformers 5 leaves the space in front of a text out there, and ranks merges by id where SentencePiece goes by
    score. As in Llama 2's tokenizer.json, the space goes before every stretch of text, also after a special token.
    """
    from tokenizers import AddedToken, models, normalizers

    pieces, dummy_prefix = read_model(model_file)
    backend = hf.backend_tokenizer
    vocab = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    unknown = next((piece for piece, _, kind in pieces if kind == UNKNOWN), None)
    normal = {piece: index for index, (piece, _, kind) in enumerate(pieces) if kind == NORMAL}
    merges = merges_of(normal, [score for _, score, _ in pieces])
    backend.model = models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefix = [normalizers.Prepend("▁")] if dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    defined = [piece for piece, _, kind in pieces if kind == USER_DEFINED]
    backend.add_tokens([AddedToken(piece, normalized=False) for piece in defined])
    config = model_file.with_name("tokenizer_config.json")
    backend.post_processor = _around(hf, vocab, read_json_object(config) if config.is_file() else {})


def _around(hf: Any, vocab: dict[str, int], config: dict[str, Any]) -> Any:
    """BOS before a text and EOS after it, as tokenizer_config.json says; BOS alone if it says nothing."""
    from tokenizers import processors

    bos, eos = hf.bos_token or "<s>", hf.eos_token or "</s>"
    before = [bos] if config.get("add_bos_token", True) and bos in vocab else []
    after = [eos] if config.get("add_eos_token", False) and eos in vocab else []
    special = [(token, vocab[token]) for token in (bos, eos) if token in vocab]
    return processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=special)


def read_model(path: Path) -> tuple[list[Piece], bool]:
    """The pieces of a SentencePiece model, and whether a text gets a space in front (sentencepiece_model.proto).

    Raises:
        TsconvertError: the file is damaged, or a unigram model, which merges otherwise.
    """
    pieces: list[Piece] = []
    model_type, dummy_prefix = 1, 1
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                model_type = dict(_fields(value)).get(3, model_type)
            elif number == 3:
                dummy_prefix = dict(_fields(value)).get(3, dummy_prefix)
    except (IndexError, ValueError, TypeError, AttributeError, struct.error):
        raise TsconvertError(f"{path}: not a SentencePiece model that can be read; download it again") from None
    if not pieces or model_type != _BPE:
        raise TsconvertError(
            f"{path}: not a SentencePiece BPE model, the only kind that GGUF has; this model cannot be exported with it"
        )
    return pieces, bool(dummy_prefix)


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


def _derived(content: dict[str, Any]) -> list[Piece]:
    """Scores from the ranks of the merges: minus the rank of the first merge that makes a piece."""
    model = content["model"]
    scores: dict[str, float] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(rank))
    unmerged = len(model["merges"])
    special = {token["content"] for token in content.get("added_tokens", []) if token.get("special")}
    unknown = model.get("unk_token") or "<unk>"
    pieces: list[Piece] = []
    for piece, index in sorted(model["vocab"].items(), key=lambda item: item[1]):
        while len(pieces) < index:
            pieces.append(("", ADDED_SCORE, NORMAL))
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            pieces.append((piece, 0.0, BYTE))
        elif piece == unknown or piece in special:
            pieces.append((piece, 0.0, UNKNOWN if piece == unknown else CONTROL))
        else:
            pieces.append((piece, scores.get(piece, -float(unmerged + index)), NORMAL))
    return pieces


def _added(token: dict[str, Any], piece: str, kind: int) -> tuple[str, int]:
    text = str(token["content"])
    if kind in (UNKNOWN, BYTE) and text == piece:
        return piece, kind
    if token.get("special") or looks_special(text):
        return text, CONTROL
    return text.replace("▁", " "), USER_DEFINED
