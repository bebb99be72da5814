"""The file's tokenizer against transformers': the same ids for nasty texts, and the same texts back."""

from typing import Any

from ...common.errors import TsconvertError
from ...model.files.gguf.file import GgufFile
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


def compare_texts(file: GgufFile, hf: Any) -> tuple[list[tuple[str, str]], list[str]]:
    """Encode and decode every nasty text with the file's tokenizer and with transformers'.

    Files that carry the whole tokenizer.json are judged by that for all texts. The `tokenizer.ggml.*` keys, which other
    engines read, must do for all but those that start with a space or spell special tokens; there a note says so.

    Returns:
        Problems, each as (which table of the file, what is wrong), and notes.
    """
    problems: list[tuple[str, str]] = []
    notes: list[str] = []
    whole = "tokenizer.huggingface.json"
    if file.metadata.get(whole):
        problems += [(whole, problem) for problem in _differences(GgufTokenizer(file), hf, (*NASTY, *LEADING))[:1]]
    try:
        plain = GgufTokenizer(file, huggingface=False)
    except TsconvertError as error:
        notes.append(f"the tokenizer.ggml keys were not tried: {error}")
        return problems, notes
    problems += [("tokenizer.ggml", problem) for problem in _differences(plain, hf, NASTY)[:1]]
    loose = _differences(plain, hf, LEADING)
    if loose:
        notes.append(
            f"engines that read the tokenizer.ggml keys may take other tokens for {len(loose)} of {len(LEADING)} texts"
            f" that begin with a space or spell special tokens: {loose[0]}"
        )
    return problems, notes


def _differences(tokenizer: GgufTokenizer, hf: Any, texts: tuple[str, ...]) -> list[str]:
    found = []
    for text in texts:
        ids, wanted = tokenizer.encode(text), list(hf.encode(text))
        if ids != wanted:
            found.append(f"{text!r} becomes {_shown(ids)} where transformers makes {_shown(wanted)}")
            continue
        back = hf.decode(wanted, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if tokenizer.decode(ids) != back:
            found.append(f"{_shown(ids)} reads {tokenizer.decode(ids)!r} where transformers reads {back!r}")
    return found


def _shown(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"{str(ids[:12])[:-1]}, ...]"
