"""The model families that tsconvert converts, one file each: any module here that has a Family in capitals is one.

CONTRIBUTING.md says how to add one.
"""

from importlib import import_module
from pathlib import Path

from .family import Family


def _families() -> dict[str, Family]:
    """By name, in the order of the first letters of the files but Llama, Mistral and Mixtral first."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in ("__init__", "family"))
    first = ("llama", "mistral", "mixtral")
    found: dict[str, Family] = {}
    for name in (*first, *(name for name in names if name not in first)):
        for value in vars(import_module(f"{__name__}.{name}")).values():
            if isinstance(value, Family):
                found.setdefault(value.name, value)
    return found


FAMILIES: dict[str, Family] = _families()
DENSE_TYPES = {family.name: family for family in FAMILIES.values()}
"""`model_type` in the config.json of a dense model -> its family."""
SPARSE_TYPES = {family.sparse_type: family for family in FAMILIES.values()} | {
    alias: family for family in FAMILIES.values() for alias in family.sparse_aliases
}
"""`model_type` in the config.json of a sparse model -> its family."""
WRAPPERS = {"mistral3": "mistral", "gemma3": "gemma3_text"}
"""`model_type` of a model with other parts beside the language model -> that of the language model, where its
`text_config` does not say. The other parts are left out."""
LEFT_OUT = {
    "qwen3_5": "its attention is linear in three of four layers, which tsconvert does not cover",
    "qwen3_5_text": "its attention is linear in three of four layers, which tsconvert does not cover",
    "qwen3_next": "its attention is linear in three of four layers, which tsconvert does not cover",
    "gpt_oss": "its attention has sinks and its experts are clamped and biased, which tsconvert does not cover",
    "cohere": "its attention and FFN run side by side, which tsconvert does not cover",
    "cohere2": "its attention and FFN run side by side, which tsconvert does not cover",
}
"""`model_type` -> why it is no family here."""


def family_of_gguf(architecture: str, *, experts: bool, windowed: bool) -> Family | None:
    """The family of the files that llama.cpp calls ``architecture``; of several the plainest that fits.

    Args:
        experts: the file has some.
        windowed: the file names a sliding window.
    """
    same = [family for family in FAMILIES.values() if family.gguf.architecture == architecture]
    fitting = [family for family in same if family.experts == experts]
    exact = [family for family in fitting if windowed == ("windows" in family.gguf.native)]
    return next(iter(exact or fitting), None)
