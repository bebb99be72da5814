"""A vocabulary as GGUF has it: tokens, types, scores or merges, special ids, templates, and their keys."""

from dataclasses import dataclass, field

from ...common.errors import TsconvertError
from ..gguf.values import Value, array, boolean, text, u32
from .ends import ALL_ENDS

PAD_SCORE = -10000.0
ADDED_SCORE = -1000.0
_NEWLINE_BYTE = "<0x0A>"
SPECIAL_KEYS = {
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
    """Ids of `bos`, `eos`, `unk`, `pad`, ..., and of the further ends `eot` and `eom`."""
    ends: list[int] = field(default_factory=list)
    """All tokens that end a text or a turn, where there are several."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    chat_templates: dict[str, str] = field(default_factory=dict)
    huggingface_json: str = ""
    notes: list[str] = field(default_factory=list)
    engine_notes: list[str] = field(default_factory=list)
    """Where engines with llama.cpp's tokenizer differ from transformers."""

    def metadata(self, *, huggingface: bool) -> dict[str, Value]:
        """The keys of a GGUF file; ``huggingface``: the whole tokenizer.json is one of them."""
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
        keys |= {SPECIAL_KEYS.get(name, f"{name}_token_id"): u32(token) for name, token in self.special.items()}
        if self.ends:
            keys[ALL_ENDS] = array("i32", self.ends)
        keys["add_bos_token"] = boolean(self.add_bos)
        keys["add_eos_token"] = boolean(self.add_eos)
        keys["add_space_prefix"] = boolean(self.add_space_prefix)
        out = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
        if huggingface and self.huggingface_json:
            out["tokenizer.huggingface.json"] = text(self.huggingface_json)
        return out | self._chat_keys()

    def check_powerinfer(self) -> list[str]:
        """Notes on where PowerInfer's tokenizer differs.

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
        notes = []
        if self.model == "gpt2" and self.pre not in ("gpt-2", "default"):
            notes.append(
                f"PowerInfer splits text as GPT-2 does and this tokenizer is {self.pre}: digits and punctuation may"
                " fall into other tokens than in training"
            )
        if self.model == "llama" and self.add_space_prefix:
            notes.append(
                "PowerInfer's main leaves out the space that this tokenizer puts before a text: begin a prompt with a"
                " space there"
            )
        return notes

    def _chat_keys(self) -> dict[str, Value]:
        named = {name: template for name, template in self.chat_templates.items() if name != "default"}
        keys = {f"tokenizer.chat_template.{name}": text(template) for name, template in named.items()}
        if "default" in self.chat_templates:
            keys["tokenizer.chat_template"] = text(self.chat_templates["default"])
        if named:
            keys["tokenizer.chat_templates"] = array("str", named)
        return keys


def looks_special(token: str) -> bool:
    """Tokens that are control tokens although their file does not say so, by the rule of llama.cpp's converter."""
    return token in ("<pad>", "<mask>") or (token.startswith("<|") and token.endswith("|>"))
