"""The file's tokenizer against the checkpoint's own library: the same ids for nasty texts, and the same texts back."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import read_json_object
from ...model.files.gguf.file import GgufFile
from ...quant.vocabulary.ends import ALL_ENDS, listed_ends
from ...runner.tokenizer import GgufTokenizer

# Spaces, controls, marks, scripts, emoji, code, numbers, and special tokens spelled out as text.
NASTY = (
    "", "a", "Hello world", "two  spaces and   three", "tab\tand\nline", "\n", "\n\n\n", "\t\tx\n\n y", "\r\n\r\n",
    "naïve café — “quotes” … ½", "日本語のテキスト", "中文。標點", "한국어 문장", "العربية", "हिन्दी में", "עברית",
    "Ωμέγα Привет", "e\u0301 é", "🚀😶\u200d🌫️👩\u200d👩\u200d👧", "🇩🇪🏳️\u200d🌈👍🏽", "\x00\x01\x7f",
    "\u200b\ufeff\u00a0x", "\u2028\u2029\u0085", "def f(x):\n    return x**2  # ok\n", "if (a&&b) {\n\treturn !c;\n}",
    "<div class=\"x\">&amp;</div>", "https://example.org/a?b=c&d=%20#e", "3.14159 1,000,000 2024-01-01 0x1F 1e-9",
    "don't I'LL we've", "CamelCase snake_case kebab-case", "a" * 100, "!!!???...---", "[INST] x [/INST]",
    "\U0001d518\U0001d52b\U0001d526", "a ▁ b", "\\n \\u0041 %s {0}", "\ufffd",
)  # fmt: skip
LEADING = (
    " ", "  ", " a", "  a  b", "▁a", "   3  33\n\n\n5", "trailing ", "<s>hi</s> there", "<unk>", "</s>", "<0x41>",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "[INST]",
)  # fmt: skip
"""Texts that start with a space or spell special tokens: here llama.cpp's SentencePiece may differ by design."""
_MARKERS = 8  # of the checkpoint's own that are tried


Library = tuple[Callable[[str], list[int]], Callable[[list[int]], str | None]]
"""Text to ids as the checkpoint's own library has it, and back; None for ids that it does not know."""


def compare_texts(
    file: GgufFile, folder: Path, hf: Any, overridden: frozenset[str] = frozenset()
) -> tuple[list[tuple[str, str]], list[str]]:
    """Encode and decode every nasty text with the file's tokenizer and with the library that the checkpoint's is of.

    That is `tokenizers` for a tokenizer.json, SentencePiece for a tokenizer.model alone, mistral-common for a
    tekken.json alone. Files that carry the whole tokenizer.json are judged by that for all texts. The
    `tokenizer.ggml.*` keys, which other engines read, must do for all but those that start with a space or spell
    special tokens; there a note says so.

    Args:
        folder: of the checkpoint.
        hf: its tokenizer, which says what was added to it.
        overridden: keys that the user chose.

    Returns:
        Problems, each as (which table of the file, what is wrong), and notes.
    """
    problems: list[tuple[str, str]] = []
    notes: list[str] = []
    markers = [str(token) for token in hf.added_tokens_decoder.values()]
    library = _library(folder, hf)
    leading = (*LEADING, *(text for marker in markers[:_MARKERS] for text in (f"a{marker}b", f"{marker}user\nhi")))
    whole = "tokenizer.huggingface.json"
    tokenizer = GgufTokenizer(file)
    if file.metadata.get(whole):
        problems += [(whole, problem) for problem in _differences(tokenizer, library, (*NASTY, *leading))[:1]]
    unknown = [end for end in listed_ends(folder, len(hf)) if end not in tokenizer.eos]
    if unknown and not overridden & {f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")}:
        problem = f"lacks {unknown[0]}, which config.json or generation_config.json lists as an end of texts"
        problems.append((f"tokenizer.ggml.{ALL_ENDS}", problem))
    try:
        plain = GgufTokenizer(file, huggingface=False)
    except TsconvertError as error:
        notes.append(f"the tokenizer.ggml keys were not tried: {error}")
        return problems, notes
    problems += [("tokenizer.ggml", problem) for problem in _differences(plain, library, NASTY)[:1]]
    loose = _differences(plain, library, leading)
    if loose:
        notes.append(
            f"engines that read the tokenizer.ggml keys may take other tokens for {len(loose)} of {len(leading)} texts"
            f" that begin with a space or spell special tokens: {loose[0]}"
        )
    return problems, notes


def _tokenizers(folder: Path) -> Library:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return (lambda text: list(tokenizer.encode(text).ids)), (lambda ids: str(tokenizer.decode(ids)))


def _library(folder: Path, hf: Any) -> Library:
    if (folder / "tokenizer.json").is_file():
        return _tokenizers(folder)
    if (folder / "tokenizer.model").is_file():
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return _between_markers(folder, hf, pieces.encode, pieces.decode, range(pieces.get_piece_size()))
    try:
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ImportError:  # without Mistral's library the loader's own must do
        return (lambda text: list(hf(text).input_ids)), (lambda _: None)
    tekken = Tekkenizer.from_file(folder / "tekken.json")
    ids = range(tekken.n_words)
    return _between_markers(folder, hf, lambda text: tekken.encode(text, bos=False, eos=False), tekken.decode, ids)


def _between_markers(
    folder: Path, hf: Any, encode_part: Callable[[str], list[int]], decode_part: Callable[[list[int]], str],
    plain: range,
) -> Library:  # fmt: skip
    """The library for each stretch between markers, which it does not know, and BOS and EOS as configured.

    Args:
        plain: the ids that the library decodes.
    """
    ids = {str(token): index for index, token in hf.added_tokens_decoder.items() if not token.normalized}
    split = re.compile(f"({'|'.join(map(re.escape, sorted(ids, key=len, reverse=True)))})") if ids else None
    config = read_json_object(path) if (path := folder / "tokenizer_config.json").is_file() else {}
    before = [hf.bos_token_id] if config.get("add_bos_token", True) and hf.bos_token_id is not None else []
    after = [hf.eos_token_id] if config.get("add_eos_token", False) and hf.eos_token_id is not None else []

    def encode(text: str) -> list[int]:
        parts = split.split(text) if split else [text]
        inner = [token for part in parts for token in ([ids[part]] if part in ids else encode_part(part))]
        return [*before, *inner, *after]

    def decode(tokens: list[int]) -> str | None:
        return str(decode_part(tokens)) if all(token in plain for token in tokens) else None

    return encode, decode


def _differences(tokenizer: GgufTokenizer, library: Library, texts: tuple[str, ...]) -> list[str]:
    encode, decode = library
    found = []
    for text in texts:
        ids, wanted = tokenizer.encode(text), encode(text)
        if ids != wanted:
            found.append(f"{text!r} becomes {_shown(ids)} where the checkpoint's tokenizer makes {_shown(wanted)}")
            continue
        back = decode(wanted)
        if back is not None and tokenizer.decode(ids) != back:
            found.append(
                f"{_shown(ids)} reads {tokenizer.decode(ids)!r} where the checkpoint's tokenizer reads {back!r}"
            )
    return found


def _shown(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{str(ids[:12])[:-1]}, ...]"
