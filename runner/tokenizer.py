"""Text to tokens and back, from what a GGUF file says, with Hugging Face's `tokenizers` and without transformers.

Our own files carry the whole tokenizer.json. From others' the tokenizer is built anew: SentencePiece (`llama`), whose
merges follow from the pieces' scores, or byte-level BPE (`gpt2`), which names its pre-tokenizer.
"""

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..common.errors import TsconvertError, reason, shown
from ..common.progress import note
from ..quant.gguf.file import GgufFile
from ..quant.vocabulary.ends import ALL_ENDS, END_KEYS, ends_by_text
from ..quant.vocabulary.vocabulary import SPECIAL_KEYS
from ..text.records import readable
from ..text.sentencepiece import CONTROL, LONGEST_TOKEN, UNKNOWN, USER_DEFINED, merges_of

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
# the characters that byte-level BPE (GPT-2's bytes_to_unicode) writes bytes as
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {
    chr(256 + number): byte for number, byte in enumerate(sorted({*range(256)} - {*_VISIBLE}))
}
_PREFIX, _WHOLE = "tokenizer.ggml.", "tokenizer.huggingface.json"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# name in llama.cpp: the regular expression that splits text, from the models' own tokenizer.json
_SPLITS = {
    "llama-bpe": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
_SPLITS["llama3"] = _SPLITS["llama-v3"] = _SPLITS["llama-bpe"]
_GPT2 = ("gpt-2", "default", "")
_ADDS_BOS = ("llama-bpe", "llama3", "llama-v3", "tekken")


class GgufTokenizer:
    """The tokenizer of a GGUF file.

    Attributes:
        bos: the token that begins a text, or None.
        end: the token that ends a text, or None.
        eos: all tokens that end one: those of the file's keys, and those that llama.cpp knows by their text.
        add_bos: texts are given ``bos``.
        chat_template: the model's Jinja template, empty without.

    Args:
        huggingface: use the whole tokenizer.json if the file carries it; False takes the `tokenizer.ggml` keys, as
            other engines do.
    """

    def __init__(self, file: GgufFile, *, huggingface: bool = True) -> None:
        self._where = str(file.path)
        keys = {name.removeprefix(_PREFIX): value for name, value in file.metadata.items() if name.startswith(_PREFIX)}
        kind, pre = str(keys.get("model", "")), str(keys.get("pre", ""))
        self._tokenizer = _build(file, keys, kind, pre, str(file.metadata.get(_WHOLE, "")) if huggingface else "")
        self._byte_level = kind == "gpt2"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        known = keys.get("tokens")
        known = known if isinstance(known, list) else []
        count = max(len(known), self._tokenizer.get_vocab_size())
        self.bos: int | None = _special(file, keys, "bos", count)
        named = {name: token for name in END_KEYS if (token := _special(file, keys, name, count)) is not None}
        self.end: int | None = named.get("eos")
        self.eos = frozenset({*named.values(), *_several(file, keys, count), *ends_by_text(known, named)})
        self.add_bos = bool(keys.get("add_bos_token", kind == "llama" or pre in _ADDS_BOS)) and self.bos is not None
        self.add_eos = bool(keys.get("add_eos_token", False))
        self.chat_template = str(file.metadata.get("tokenizer.chat_template", ""))
        special = {
            name: _special(file, keys, key.removesuffix("_token_id"), count) for name, key in SPECIAL_KEYS.items()
        }
        self._named = {f"{name}_token": self.piece(token) for name, token in special.items() if token is not None}

    def encode(self, text: str, *, special: bool = True, parse_special: bool = True) -> list[int]:
        """The tokens of ``text``.

        Args:
            special: put BOS in front (and EOS behind) where the model's texts have them.
            parse_special: special tokens that are spelled out in the text are those tokens; False: they are text. As
                llama.cpp's `llama_tokenize`, which leaves user-defined tokens whole either way.
        """
        tokens = self._ids(text, parse_special=parse_special)
        if not special:
            return tokens
        before = [self.bos] if self.add_bos and self.bos is not None else []
        return before + tokens + ([self.end] if self.add_eos and self.end is not None else [])

    def _ids(self, text: str, *, parse_special: bool = True) -> list[int]:
        try:
            if self._tokenizer.encode_special_tokens is parse_special:  # not set while another thread encodes
                self._tokenizer.encode_special_tokens = not parse_special
            return list(self._tokenizer.encode(readable(text), add_special_tokens=False).ids)
        except Exception as error:  # the library raises plain Exception
            raise TsconvertError(
                f"{self._where}: the tokenizer cannot encode the text ({reason(error)}); export it again"
            ) from None

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of ``tokens``; bytes that are no whole character become U+FFFD.

        Args:
            special: spell special tokens out instead of leaving them away.
        """
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special))

    def piece(self, token: int) -> str:
        """A token as the vocabulary has it, empty for one that it lacks."""
        return str(self._tokenizer.id_to_token(token) or "")

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text, in UTF-8; often a part of a character only."""
        piece = self.piece(token)
        if not self._byte_level:
            byte = _BYTE_PIECE.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
        if all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return piece.encode()

    def chat(self, messages: Sequence[dict[str, str]], *, advice: str = "leave --system or --chat out") -> list[int]:
        """The tokens of a conversation, up to where the model answers, as transformers' `apply_chat_template` has them.

        Args:
            messages: `{"role": "user", "content": ...}` and so on, oldest first.
            advice: what to do where the template refuses them.

        Raises:
            TsconvertError: the file has no chat template, or the template refuses the messages.
        """
        if not self.chat_template:
            raise TsconvertError(f"{self._where}: the file has no chat template; leave --chat out")
        from .chat_template import render

        values = {"messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": True}
        return self._ids(render(self.chat_template, values | self._named, where=self._where, advice=advice))


class TextStream:
    """Text from tokens as they come; a character is never split.

    Args:
        tokenizer: of the model.
        prompt: tokens before the first, which decide about its leading space.
    """

    def __init__(self, tokenizer: GgufTokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt)
        self._known = len(self._tokens)
        self._shown = tokenizer.decode(self._tokens)

    def push(self, token: int) -> str:
        """The text that ``token`` completes, often empty for parts of a character."""
        self._tokens.append(token)
        return self._take(whole=False)

    def flush(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        return self._take(whole=True)

    def _take(self, *, whole: bool) -> str:
        text = self._tokenizer.decode(self._tokens)
        new = text[len(self._shown) :]
        if not new or (not whole and text.endswith("\ufffd")):
            return ""
        # Go on from the tokens of this piece: they begin and end with whole characters, and keep the next one's space.
        self._tokens = self._tokens[self._known :]
        self._known = len(self._tokens)
        self._shown = self._tokenizer.decode(self._tokens)
        return new


def _special(file: GgufFile, keys: dict[str, Any], name: str, count: int) -> int | None:
    """The id of a special token; None where the file names none."""
    token = keys.get(f"{name}_token_id")
    if token is None:
        return None
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < count:
        raise TsconvertError(
            f"{file.path}: key {_PREFIX}{name}_token_id is {shown(token)}, none of {count} tokens; write the file again"
        )
    return token


def _several(file: GgufFile, keys: dict[str, Any], count: int) -> list[int]:
    """The ids of a list of ends."""
    tokens = keys.get(ALL_ENDS, [])
    if not isinstance(tokens, list) or not all(isinstance(token, int) and 0 <= token < count for token in tokens):
        raise TsconvertError(
            f"{file.path}: key {_PREFIX}{ALL_ENDS} is {shown(tokens)}, no list of {count} tokens; write the file again"
        )
    return tokens


def _build(file: GgufFile, keys: dict[str, Any], kind: str, pre: str, whole: str) -> Tokenizer:
    if whole:
        try:
            return Tokenizer.from_str(whole)
        except Exception as error:  # the library raises plain Exception
            raise TsconvertError(f"{file.path}: {_WHOLE} is damaged ({reason(error)}); export it again") from None
    tokens = keys.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise TsconvertError(f"{file.path}: the file has no tokenizer; export it with the model's own")
    token_types = keys.get("token_type", [])
    try:
        if max(map(len, tokens)) > LONGEST_TOKEN or not isinstance(token_types, list):
            raise ValueError("tokens of more characters than any model has, or no types")
        if kind == "llama":
            tokenizer = _sentencepiece(tokens, keys)
        elif kind == "gpt2":
            tokenizer = _byte_level(file, tokens, keys, pre)
        else:
            raise TsconvertError(
                f"{file.path}: tokenizer model {shown(kind)}; the runner knows llama and gpt2, run it with the engine"
                " that it was made for"
            )
    except TsconvertError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise TsconvertError(
            f"{file.path}: the tokenizer's keys are damaged ({reason(error)}); write the file again"
        ) from None
    special = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    for token, token_type in zip(tokens, token_types, strict=False):
        if isinstance(token_type, int) and token_type in special and token:
            added = AddedToken(token, special=special[token_type], normalized=False)
            (tokenizer.add_special_tokens if special[token_type] else tokenizer.add_tokens)([added])
    return tokenizer


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocabulary.setdefault(token, index)
    return vocabulary


def _sentencepiece(tokens: list[str], keys: dict[str, Any]) -> Tokenizer:
    """BPE whose merges are every way to make a piece of two others, best score first, as transformers derives them."""
    vocabulary, scores = _vocabulary(tokens), keys["scores"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of(vocabulary, scores),
            unk_token=tokens[keys.get("unknown_token_id", 0)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(keys.get("add_space_prefix", True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _byte_level(file: GgufFile, tokens: list[str], keys: dict[str, Any], pre: str) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in keys["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(tokens), merges=merges, ignore_merges=pre in _ADDS_BOS))
    if "pre" not in keys:
        note(
            f"{file.path}: no key {_PREFIX}pre says how text is split; GPT-2's way is taken, and may not be the model's"
        )
    if pre in _GPT2:
        split: list[Any] = []
    elif pre == "smollm":
        split = [pre_tokenizers.Digits(individual_digits=True)]
    elif pre in _SPLITS:
        split = [pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated")]
    else:
        known = ", ".join([*_GPT2[:2], "smollm", *_SPLITS])
        raise TsconvertError(
            f"{file.path}: pre-tokenizer {shown(pre)}; the runner knows {known}, run it with the engine that it was"
            " made for"
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _SPLITS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":  # in these models' tokenizer.json; GGUF has no key for it
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer
