"""Text to tokens and back, from what a GGUF file says, with Hugging Face's `tokenizers` and without transformers.

Our own files carry the whole tokenizer.json. From others' the tokenizer is built anew (model/files/gguf/tokenizer.py).
"""

import re
from collections.abc import Sequence
from typing import Any

from ..common.errors import TsconvertError, reason, shown
from ..model.files.gguf.file import GgufFile
from ..model.files.gguf.tokenizer import adds_bos, build, special_id, tokenizer_keys
from ..model.files.gguf.vocabulary import BYTE_OF, SPECIAL_KEYS
from ..quant.vocabulary.ends import ALL_ENDS, END_KEYS, ends_by_text
from ..text.records import readable

_PREFIX = "tokenizer.ggml."
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


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
        keys = tokenizer_keys(file)
        self._tokenizer = build(file, huggingface=huggingface)
        self._byte_level = keys.get("model") == "gpt2"
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        known = keys.get("tokens")
        known = known if isinstance(known, list) else []
        count = max(len(known), self._tokenizer.get_vocab_size())
        self.bos: int | None = special_id(file, keys, "bos", count)
        named = {name: token for name in END_KEYS if (token := special_id(file, keys, name, count)) is not None}
        self.end: int | None = named.get("eos")
        self.eos = frozenset({*named.values(), *_several(file, keys, count), *ends_by_text(known, named)})
        self.add_bos = adds_bos(keys) and self.bos is not None
        self.add_eos = bool(keys.get("add_eos_token", False))
        self.chat_template = str(file.metadata.get("tokenizer.chat_template", ""))
        special = {
            name: special_id(file, keys, key.removesuffix("_token_id"), count) for name, key in SPECIAL_KEYS.items()
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
        if all(character in BYTE_OF for character in piece):
            return bytes(BYTE_OF[character] for character in piece)
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


def _several(file: GgufFile, keys: dict[str, Any], count: int) -> list[int]:
    """The ids of a list of ends."""
    tokens = keys.get(ALL_ENDS, [])
    if not isinstance(tokens, list) or not all(isinstance(token, int) and 0 <= token < count for token in tokens):
        raise TsconvertError(
            f"{file.path}: key {_PREFIX}{ALL_ENDS} is {shown(tokens)}, no list of {count} tokens; write the file again"
        )
    return tokens
