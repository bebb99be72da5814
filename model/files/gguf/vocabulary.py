"""A vocabulary's terms: the types of tokens, the special ones, and the merges that scores stand for."""

from collections.abc import Mapping, Sequence

# SentencePiece.Type (sentencepiece_model.proto), which GGUF took over as enum llama_token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPECIAL_KEYS = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "sep": "seperator_token_id",
    "pad": "padding_token_id", "cls": "cls_token_id", "mask": "mask_token_id",
}  # fmt: skip
LONGEST_TOKEN = 2048
"""Characters; the tokens of real vocabularies have a few hundred at most."""
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {
    chr(256 + number): byte for number, byte in enumerate(sorted({*range(256)} - {*_VISIBLE}))
}
"""The characters that byte-level BPE writes bytes as (GPT-2's bytes_to_unicode)."""


def merges_of(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the highest score first: the merges that a tokenizer.json lists.

    Among equal scores, which Mistral's pieces of spaces have, SentencePiece joins what stands leftmost in the text.
    That is what has grown longest, so that long left parts come first, as in transformers' own conversion.

    Args:
        ids: the id of each piece.
        scores: the score of each id.
    """
    ranked = []
    for piece, index in ids.items():
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[index], -cut, cut - len(piece), ids[left], ids[right], (left, right)))
    return [pair for *_, pair in sorted(ranked)]
