"""A checkpoint's vocabulary as GGUF's `tokenizer.*` keys.

Two kinds: `llama`, SentencePiece BPE with byte fallback (tokenizer_spm.py), `gpt2`, byte-level BPE (tokenizer_bpe.py).
What is put around a text, BOS, EOS, a leading space, is observed on the tokenizer itself: files contradict each other.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..convert.errors import TsconvertError
from .gguf_writer import Value, array, boolean, text, u32

# enum llama_token_type, which is SentencePiece's
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
PAD_SCORE = -10000.0
ADDED_SCORE = -1000.0
_NEWLINE_BYTE = "<0x0A>"
_SPECIAL_KEYS = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "sep": "seperator_token_id",
    "pad": "padding_token_id", "cls": "cls_token_id", "mask": "mask_token_id",
}  # fmt: skip


@dataclass(kw_only=True)
class Vocabulary:
    """Everything that a file says about its tokenizer."""

    model: str
    """`llama` or `gpt2`."""
    pre: str
    """The pre-tokenizer, by llama.cpp's name."""
    tokens: list[str]
    """As many as the embedding has rows."""
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    """Ids of `bos`, `eos`, `unk`, `pad`, ..."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    chat_templates: dict[str, str] = field(default_factory=dict)
    huggingface_json: str = ""
    notes: list[str] = field(default_factory=list)
    engine_notes: list[str] = field(default_factory=list)
    """What engines with llama.cpp's tokenizer do otherwise than transformers."""

    def metadata(self, *, chat: bool, huggingface: bool) -> dict[str, Value]:
        """The keys of a GGUF file.

        Args:
            chat: with the chat templates.
            huggingface: with the whole tokenizer.json.
        """
        keys = {
            "model": text(self.model),
            "pre": text(self.pre),
            "tokens": array("str", self.tokens),
            "token_type": array("i32", self.types),
        }
        if self.scores is not None:
            keys["scores"] = array("f32", self.scores)
        if self.merges is not None:
            keys["merges"] = array("str", self.merges)
        keys |= {_SPECIAL_KEYS[name]: u32(token) for name, token in self.special.items()}
        keys["add_bos_token"] = boolean(self.add_bos)
        keys["add_eos_token"] = boolean(self.add_eos)
        keys["add_space_prefix"] = boolean(self.add_space_prefix)
        out = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
        if huggingface and self.huggingface_json:
            out["tokenizer.huggingface.json"] = text(self.huggingface_json)
        return out | (self._chat_keys() if chat else {})

    def check_powerinfer(self) -> list[str]:
        """Notes on what PowerInfer's tokenizer does otherwise.

        Raises:
            TsconvertError: PowerInfer cannot load this vocabulary.
        """
        if self.model == "llama" and _NEWLINE_BYTE not in self.tokens:
            raise TsconvertError(
                f"the vocabulary has no byte token {_NEWLINE_BYTE}, without which PowerInfer does not load a"
                " SentencePiece vocabulary; export with --target sparse"
            )
        seen: set[str] = set()
        for index, token in enumerate(self.tokens):
            if not token or token in seen:
                what = f"is {token!r} again" if token else "is empty"
                raise TsconvertError(
                    f"token {index} {what}, and PowerInfer needs them distinct; export with --target sparse"
                )
            seen.add(token)
        if self.model == "gpt2" and self.pre not in ("gpt-2", "default"):
            note = (
                f"PowerInfer splits text as GPT-2 does and this tokenizer is {self.pre}: digits and punctuation may"
                " fall into other tokens than in training"
            )
            return [note]
        return []

    def _chat_keys(self) -> dict[str, Value]:
        named = {name: template for name, template in self.chat_templates.items() if name != "default"}
        keys = {f"tokenizer.chat_template.{name}": text(template) for name, template in named.items()}
        if "default" in self.chat_templates:
            keys["tokenizer.chat_template"] = text(self.chat_templates["default"])
        if named:
            keys["tokenizer.chat_templates"] = array("str", named)
        return keys


def read_vocabulary(folder: Path, rows: int, *, pre: str | None = None, eos: tuple[int, ...] = ()) -> Vocabulary:
    """The vocabulary of the checkpoint in ``folder``.

    Args:
        rows: of the embedding; the vocabulary is padded with unused tokens, or cut, to as many.
        pre: the pre-tokenizer's name, for a byte-level BPE that is not recognized.
        eos: ids from config.json, for a tokenizer that names none.

    Raises:
        TsconvertError: no tokenizer, a kind that GGUF has no name for, or an unknown pre-tokenizer.
    """
    from . import tokenizer_bpe, tokenizer_spm

    content = read_json(folder / "tokenizer.json")
    model_file = folder / "tokenizer.model"
    if not content and not model_file.is_file():
        raise TsconvertError(
            f"{folder}: no tokenizer (tokenizer.model or tokenizer.json); copy the tokenizer's files into the folder"
        )
    hf = load_tokenizer(folder)
    if not content:
        tokenizer_spm.correct(hf, model_file)
        content = json.loads(hf.backend_tokenizer.to_str())
    kind = _kind(content, folder)
    if kind == "gpt2":
        vocabulary = tokenizer_bpe.read(content, hf, folder, pre)
    elif pre is not None:
        raise TsconvertError(
            "--pre names a byte-level BPE's pre-tokenizer and this vocabulary is SentencePiece; leave it out"
        )
    else:
        vocabulary = tokenizer_spm.read(content, model_file)
    path = folder / "tokenizer.json"
    vocabulary.huggingface_json = path.read_text(encoding="utf-8") if path.is_file() else json.dumps(content)
    _fit(vocabulary, rows)
    _observe(vocabulary, hf, eos)
    return vocabulary


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file.

    Raises:
        TsconvertError: the file is there and holds no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TsconvertError(f"{path}: not JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise TsconvertError(f"{path}: not a JSON object; download it again")
    return content


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a checkpoint folder, without running code from the folder.

    Raises:
        TsconvertError: transformers cannot load it.
    """
    import transformers

    kind = transformers.PreTrainedTokenizerFast
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of every model type that is not its own
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return tokenizer if isinstance(tokenizer, kind) else kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise TsconvertError(
            f"{folder}: transformers cannot load the tokenizer ({reason}); download it again"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def looks_special(token: str) -> bool:
    """Tokens that are control tokens although their file does not say so, by the rule of llama.cpp's converter."""
    return token in ("<pad>", "<mask>") or (token.startswith("<|") and token.endswith("|>"))


def _kind(content: dict[str, Any], folder: Path) -> str:
    model = content.get("model") or {}
    if model.get("type") == "BPE":
        return "llama" if model.get("byte_fallback") else "gpt2"
    raise TsconvertError(
        f"{folder}: the tokenizer is {model.get('type')!r} and GGUF's Llama engines take SentencePiece BPE and"
        " byte-level BPE; this model cannot be exported with it"
    )


def _fit(vocabulary: Vocabulary, rows: int) -> None:
    count = len(vocabulary.tokens)
    if count > rows:
        vocabulary.notes.append(f"{count - rows} tokens beyond the embedding's {rows} rows are left out")
        del vocabulary.tokens[rows:], vocabulary.types[rows:]
        if vocabulary.scores is not None:
            del vocabulary.scores[rows:]
    for index in range(count, rows):
        vocabulary.tokens.append(f"[PAD{index}]")
        vocabulary.types.append(UNUSED)
        if vocabulary.scores is not None:
            vocabulary.scores.append(PAD_SCORE)


def _observe(vocabulary: Vocabulary, hf: Any, eos: tuple[int, ...]) -> None:
    """Special ids and templates as transformers has them; what it adds around a text, by encoding one."""
    for name in _SPECIAL_KEYS:
        token = getattr(hf, f"{name}_token_id", None)
        if isinstance(token, int) and 0 <= token < len(vocabulary.tokens):
            vocabulary.special[name] = token
    if "eos" not in vocabulary.special and eos and eos[0] < len(vocabulary.tokens):
        vocabulary.special["eos"] = eos[0]
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
    template = getattr(hf, "chat_template", None)
    vocabulary.chat_templates = template if isinstance(template, dict) else {"default": template} if template else {}
