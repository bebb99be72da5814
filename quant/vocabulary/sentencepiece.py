"""SentencePiece vocabularies as GGUF has them: pieces and scores, from tokenizer.model or from a tokenizer.json."""

from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece, read_model
from .vocabulary import ADDED_SCORE, Vocabulary, looks_special


def read(content: dict[str, Any], folder: Path) -> Vocabulary:
    """The vocabulary of a tokenizer.json with byte fallback, with tokenizer.model's scores where they belong to it.

    Both rank merges: SentencePiece by the score of the piece that results, tokenizer.json by the order of its merges.
    Where they contradict each other tokenizer.json is right, as for transformers, and a note says so.
    """
    vocab: dict[str, int] = content["model"]["vocab"]
    added = {token["id"]: token for token in content.get("added_tokens", [])}
    by_id = {index: piece for piece, index in vocab.items()}
    pieces, notes = _derived(content), []
    model_file = folder / "tokenizer.model"
    if model_file.is_file():
        names = by_id | {index: str(token["content"]) for index, token in added.items()}
        found, problem = _of_model(model_file, content["model"]["merges"], names)
        pieces = pieces if problem else found
        if problem:
            notes.append(
                f"{model_file} belongs to another model than {folder / 'tokenizer.json'} ({problem}): the vocabulary is"
                " tokenizer.json's alone"
            )
    size = max([*vocab.values(), *added, -1]) + 1
    tokens, scores, types = [], [], []
    for index in range(size):
        name = by_id.get(index, "")
        piece, score, kind = pieces[index] if index < len(pieces) else (name, ADDED_SCORE, NORMAL)
        piece = name or piece
        if index in added:
            piece, kind = _added(added[index], piece, kind)
        elif not piece:
            piece, kind = f"[PAD{index}]", UNUSED
        tokens.append(piece)
        scores.append(score)
        types.append(kind)
    return Vocabulary(model="llama", pre="default", tokens=tokens, scores=scores, types=types, notes=notes)


def _of_model(file: Path, merges: list[Any], names: dict[int, str]) -> tuple[list[Piece], str]:
    """The pieces of tokenizer.model, and what shows that they are not those of the tokenizer.json, if anything."""
    try:
        pieces = read_model(file).pieces
    except TsconvertError:
        return [], "it cannot be read"
    for index, (piece, _, kind) in enumerate(pieces):
        if kind in (NORMAL, BYTE) and names.get(index) != piece:
            there = repr(names[index]) if index in names else "missing"
            return [], f"its token {index} is {piece!r} and there it is {there}"
    scores = {piece: score for piece, score, _ in pieces}
    last = float("inf")
    for merge in merges:
        joined = "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)
        score = scores.get(joined, float("nan"))
        if not score <= last:
            return [], f"it joins {joined!r} in another order"
        last = score
    return pieces, ""


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
