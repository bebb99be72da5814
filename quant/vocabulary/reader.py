"""A checkpoint's tokenizer, read for a GGUF file.

Two kinds: `llama`, SentencePiece BPE with byte fallback (sentencepiece.py), `gpt2`, byte-level BPE (bpe.py).
What is put around a text, BOS, EOS, a leading space, is observed on the tokenizer itself: files contradict each other.
"""

import json
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError, reason, shown
from ...common.files import read_json_object
from ...model.files.gguf.tokenizer import CASED
from ...model.files.gguf.vocabulary import BYTE, NORMAL, SPECIAL_KEYS, UNKNOWN, UNUSED, USER_DEFINED
from ...text.tokenizer import load_tokenizer
from . import bpe, sentencepiece
from .ends import end_keys, ends_by_text, listed_ends
from .vocabulary import PAD_SCORE, Vocabulary

_MOST_HOLES = 100_000  # among the ids of a vocabulary


def read_vocabulary(folder: Path, rows: int, *, pre: str | None = None) -> Vocabulary:
    """The vocabulary of the checkpoint in ``folder``.

    Args:
        rows: the rows of the embedding; the vocabulary is padded with unused tokens, or cut, to as many.
        pre: the pre-tokenizer's name, for a byte-level BPE that is not recognized.

    Raises:
        TsconvertError: no tokenizer, a kind that GGUF has no name for, or an unknown pre-tokenizer.
    """
    path = folder / "tokenizer.json"
    content = read_json_object(path) if path.is_file() else {}
    hf = load_tokenizer(folder)
    content = content or json.loads(hf.backend_tokenizer.to_str())
    try:
        vocabulary = _read(content, hf, folder, pre)
        _fit(vocabulary, rows, folder)
        _observe(vocabulary, hf)
        vocabulary.engine_notes += _unlike_llama_cpp(vocabulary, content)
        _end(vocabulary, listed_ends(folder, len(vocabulary.tokens)))
    except TsconvertError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise TsconvertError(
            f"{folder}: the tokenizer's files contradict each other ({reason(error)}); download them again"
        ) from None
    vocabulary.huggingface_json = path.read_text(encoding="utf-8") if path.is_file() else json.dumps(content)
    return vocabulary


def _read(content: dict[str, Any], hf: Any, folder: Path, pre: str | None) -> Vocabulary:
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        raise TsconvertError(
            f"{folder}: the tokenizer is {model.get('type')!r} and GGUF's Llama engines take SentencePiece BPE and"
            " byte-level BPE; this model cannot be exported with it"
        )
    _check_ids(content, folder)
    if not model.get("byte_fallback"):
        return bpe.read(content, hf, folder, pre)
    if pre is not None:
        raise TsconvertError(
            f"{folder}: --pre names a byte-level BPE's pre-tokenizer and this vocabulary is SentencePiece; leave it out"
        )
    return sentencepiece.read(content, folder)


def _check_ids(content: dict[str, Any], folder: Path) -> None:
    """Refuse ids far beyond the number of tokens: a list is made that is as long as the largest."""
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content.get("added_tokens") or ())]
    for each in ids:
        if not isinstance(each, int) or not 0 <= each < 2 * len(ids) + _MOST_HOLES:
            raise TsconvertError(
                f"{folder}: tokenizer.json has {len(ids)} tokens and {shown(each)} among their ids; download it again"
            )


def _fit(vocabulary: Vocabulary, rows: int, folder: Path) -> None:
    count = len(vocabulary.tokens)
    if count > rows:
        plain = sum(kind in (NORMAL, BYTE) for kind in vocabulary.types[rows:])
        if plain:
            raise TsconvertError(
                f"{folder}: the tokenizer has {count} tokens and the model has {rows}, so {plain} pieces of text have"
                " no embedding; copy the model's own tokenizer there"
            )
        vocabulary.notes.append(f"{count - rows} tokens beyond the embedding's {rows} rows are left out")
        del vocabulary.tokens[rows:], vocabulary.types[rows:]
        if vocabulary.scores is not None:
            del vocabulary.scores[rows:]
    for index in range(count, rows):
        vocabulary.tokens.append(f"[PAD{index}]")
        vocabulary.types.append(UNUSED)
        if vocabulary.scores is not None:
            vocabulary.scores.append(PAD_SCORE)


def _observe(vocabulary: Vocabulary, hf: Any) -> None:
    """Special ids and templates as transformers has them; what it adds around a text, by encoding one."""
    for name in SPECIAL_KEYS:
        token = getattr(hf, f"{name}_token_id", None)
        if isinstance(token, int) and 0 <= token < len(vocabulary.tokens):
            vocabulary.special[name] = token
    if "unk" not in vocabulary.special and UNKNOWN in vocabulary.types:
        vocabulary.special["unk"] = vocabulary.types.index(UNKNOWN)
    bare, whole = hf.encode("a", add_special_tokens=False), hf.encode("a")
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before, after = whole[:start], whole[start + len(bare) :]
    vocabulary.add_bos, vocabulary.add_eos = bool(before), bool(after)
    if before:
        vocabulary.special["bos"] = before[0]
    if after:
        vocabulary.special["eos"] = after[-1]
    vocabulary.add_space_prefix = bool(bare) and vocabulary.tokens[bare[0]].startswith(("▁", "Ġ"))
    if vocabulary.add_space_prefix and hf.encode(" a", add_special_tokens=False) == bare:
        vocabulary.engine_notes.append(
            "this tokenizer puts no space before a text that begins with one, nor after a special token, and"
            " llama.cpp's always does: such texts get other ids there"
        )
    elif vocabulary.add_space_prefix and (marker := _glued(hf, bare)):
        vocabulary.engine_notes.append(
            f"this tokenizer puts no space after {marker}, and llama.cpp's does: what follows gets other ids there"
        )
    template = getattr(hf, "chat_template", None)
    vocabulary.chat_templates = template if isinstance(template, dict) else {"default": template} if template else {}


def _glued(hf: Any, bare: list[int]) -> str | None:
    """A token that was added, after which a text does not begin as on its own; None without."""
    markers = map(str, hf.added_tokens_decoder.values())
    return next((each for each in markers if hf.encode(f"{each}a", add_special_tokens=False)[1:] != bare), None)


def _unlike_llama_cpp(vocabulary: Vocabulary, content: dict[str, Any]) -> list[str]:
    """What the tokenizer does, and llama.cpp's has no key for."""
    notes = []
    normalizer = content.get("normalizer") or {}
    steps = [step.get("type") for step in normalizer.get("normalizers", [normalizer])]
    characters = [step for step in steps if step not in (None, "Prepend", "Replace", "Strip")]
    if characters:
        notes.append(
            f"this tokenizer normalizes characters ({', '.join(characters)}) and llama.cpp's does not: accents"
            " of two characters and the like get other ids there"
        )
    if vocabulary.pre in CASED:
        notes.append(
            f"llama.cpp's expression for {vocabulary.pre} ends words at combining marks, and not at capital letters"
            " outside of ASCII: such texts get other ids there"
        )
    defined = [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == USER_DEFINED]
    if vocabulary.model == "llama" and any(token and not token.strip(" ▁") for token in defined):
        notes.append(
            "llama.cpp finds this tokenizer's added tokens of spaces by spaces alone, and not by the sign U+2581: texts"
            " with that sign get other ids there"
        )
    ordinary = [
        vocabulary.tokens[token] for token in sorted(ends_by_text(vocabulary.tokens))
        if vocabulary.types[token] == NORMAL
    ]  # fmt: skip
    if ordinary:
        notes.append(
            f"{', '.join(ordinary)} in a text is several tokens for this tokenizer, and one that ends texts for"
            " llama.cpp"
        )
    return notes


def _end(vocabulary: Vocabulary, listed: list[int]) -> None:
    """The ends of texts and turns: the tokenizer's own, and what config.json and generation_config.json list."""
    if not listed:
        return
    eos = vocabulary.special.setdefault("eos", listed[0])
    ends = [eos, *(end for end in listed if end != eos)]
    keys, lost = end_keys(ends, eos, vocabulary.tokens)
    vocabulary.special |= keys
    vocabulary.ends = ends if len(ends) > 1 else []
    if lost:
        names = ", ".join(repr(vocabulary.tokens[end]) for end in lost)
        vocabulary.engine_notes.append(
            f"llama.cpp has keys for three ends of a text, and does not stop at {names}; tsconvert's `run` does"
        )
