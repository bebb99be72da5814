"""Which tokens end a text or a turn: those that a checkpoint lists, a GGUF file's keys hold, or their text shows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...common.errors import TsconvertError, shown
from ...common.files import read_json_object

END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""`tokenizer.ggml.NAME_token_id`: llama.cpp ends a text at each of these (llama_vocab::impl::load, special_eog_ids)."""
ALL_ENDS = "eos_token_ids"
"""`tokenizer.ggml.eos_token_ids`: ends of a text without number, as Ollama's files have them; llama.cpp ignores it."""
_EOM = "<|eom_id|>"
_BY_TEXT = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", _EOM, "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
        "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",  # noqa: RUF001
    )
)  # fmt: skip
_FILL_IN_MIDDLE = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_MARKERS = _BY_TEXT.union(*_FILL_IN_MIDDLE.values())
# a marker that ends nothing where the others are in the vocabulary
_UNLESS = (
    ("<|end|>", ("<|return|>", "<|call|>")), ("<|end|>", ("<|return|>", "<|calls|>")),
    ("<|end|>", ("<|flush|>", "<|call|>")), ("<|end|>", ("<|flush|>", "<|calls|>")),
    ("</s>", ("<|tool_response>",)),
)  # fmt: skip


def ends_by_text(tokens: Sequence[str], keys: Iterable[str] = ()) -> set[int]:
    """The tokens that llama.cpp takes for ends by their text alone.

    Args:
        tokens: the vocabulary.
        keys: those of `END_KEYS` that the file has; a marker that one of them stands for is not looked for.
    """
    ids = {token: index for index, token in enumerate(tokens) if token in _MARKERS}
    found = {text for text in _BY_TEXT if text in ids}
    for marker, others in _UNLESS:
        if all(other in ids for other in others):
            found.discard(marker)
    for key, texts in _FILL_IN_MIDDLE.items():
        if key not in keys:
            found |= {text for text in texts if text in ids}
    return {ids[text] for text in found}


def listed_ends(folder: Path, count: int) -> list[int]:
    """The ids that config.json and generation_config.json list as `eos_token_id`, each once; those of ``count`` tokens.

    Raises:
        TsconvertError: one of them is no token.
    """
    found: dict[int, None] = {}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        config = read_json_object(path)
        inner = config.get("text_config")
        stated = config.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
        for token in stated if isinstance(stated, list) else [stated]:
            if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
                raise TsconvertError(f"{path}: eos_token_id has {shown(token)}, which is no token's number; correct it")
            if token is not None and 0 <= token < count:
                found[token] = None
    return list(found)


def end_keys(ends: Sequence[int], eos: int, tokens: Sequence[str]) -> tuple[dict[str, int], list[int]]:
    """Where ``ends`` other than ``eos`` go in a file for llama.cpp, which has `eot` and `eom` for them.

    Returns:
        The keys, and the ends that neither have room there nor are known by their text.
    """
    known = ends_by_text(tokens)
    rest = sorted((end for end in ends if end != eos), key=lambda end: end in known)  # what needs a key comes first
    taken, lost = rest[:2], [end for end in rest[2:] if end not in known]
    if len(taken) == 2 and tokens[taken[0]] == _EOM:
        taken.reverse()
    names = ("eom",) if len(taken) == 1 and tokens[taken[0]] == _EOM else ("eot", "eom")
    return dict(zip(names, taken, strict=False)), lost
