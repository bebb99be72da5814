"""The tokenizer of a GGUF file, built from its keys with Hugging Face's `tokenizers`.

SentencePiece (`llama`), whose merges follow from the pieces' scores, or byte-level BPE (`gpt2`), which names its
pre-tokenizer.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ....common.errors import TsconvertError, reason, shown
from ....common.progress import note
from .file import GgufFile
from .vocabulary import CONTROL, LONGEST_TOKEN, SPECIAL_KEYS, UNKNOWN, USER_DEFINED, merges_of

_PREFIX, _WHOLE = "tokenizer.ggml.", "tokenizer.huggingface.json"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_SENTENCE_PARTS = r" ?[^(\s|.,!?…。，、।۔،)]+"  # noqa: RUF001


def _words(digits: str, signs: str = r"[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?{signs}|{_SPACES}"


def _cased_words(digits: str, end: str = "") -> str:
    """Words that end before a capital letter."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{end}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{end}"
    return rf"{word}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_EXPRESSIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    (
        "llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0", "pixtral", "dbrx", "smaug-bpe", "chatglm-bpe", "glm4",
    ): (_words(r"\p{N}{1,3}"),),
    ("qwen2", "deepseek-r1-qwen", "megrez", "kormo"): (_words(r"\p{N}"),),
    ("seed-coder",): (_words(r"\p{N}", r"[^\s\p{L}\p{N}\r\n]+"),),
    ("tekken",): (_cased_words(r"\p{N}"),),
    ("gpt-4o",): (_cased_words(r"\p{N}{1,3}", rf"{_CONTRACTIONS}?"),),
    ("gpt-2", "a.x-4.0", "mellum", "olmo", "trillion", "granite-docling"): (_GPT2,),
    ("smollm", "starcoder", "refact", "minerva-7b"): (r"\p{N}", _GPT2),
    ("deepseek-coder",): (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    ("poro-chat",): (_SENTENCE_PARTS,),
    ("viking",): (_SENTENCE_PARTS, r"\p{N}"),
    ("default",): (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}  # fmt: skip
PRE_TOKENIZERS = {name: each for names, each in _EXPRESSIONS.items() for name in names}
"""llama.cpp's names -> regular expressions that split a text one after the other, as in the models' tokenizer.json."""
CASED = ("tekken", "gpt-4o")
"""For these llama.cpp takes expressions of its own, in which letters outside of ASCII are small and capital at once."""
_ADDS_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "midm-2.0", "pixtral", "tekken")


def tokenizer_keys(file: GgufFile) -> dict[str, Any]:
    """The keys of a file's tokenizer, without what they all begin with."""
    return {name.removeprefix(_PREFIX): value for name, value in file.metadata.items() if name.startswith(_PREFIX)}


def adds_bos(keys: dict[str, Any]) -> bool:
    """Whether texts begin with BOS; what llama.cpp takes where no key says so."""
    return bool(keys.get("add_bos_token", keys.get("model") == "llama" or keys.get("pre") in _ADDS_BOS))


def special_id(file: GgufFile, keys: dict[str, Any], name: str, count: int) -> int | None:
    """The id of a special token; None where the file names none."""
    token = keys.get(f"{name}_token_id")
    if token is None:
        return None
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < count:
        raise TsconvertError(
            f"{file.path}: key {_PREFIX}{name}_token_id is {shown(token)}, none of {count} tokens; write the file again"
        )
    return token


def build(file: GgufFile, *, huggingface: bool = True) -> Tokenizer:
    """The tokenizer of a file: of the whole tokenizer.json if it carries that, else of its `tokenizer.ggml` keys.

    Args:
        huggingface: False takes the keys in any case, as other engines do.

    Raises:
        TsconvertError: the file has no tokenizer, one that is not known, or a damaged one.
    """
    keys = tokenizer_keys(file)
    kind, pre = str(keys.get("model", "")), str(keys.get("pre", ""))
    whole = str(file.metadata.get(_WHOLE, "")) if huggingface else ""
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
                f"{file.path}: tokenizer model {shown(kind)}; tsconvert knows llama and gpt2, use it with the engine"
                " that it was made for"
            )
    except TsconvertError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise TsconvertError(
            f"{file.path}: the tokenizer's keys are damaged ({reason(error)}); write the file again"
        ) from None
    for special, types in ((True, (CONTROL, UNKNOWN)), (False, (USER_DEFINED,))):
        found = [token for token, kind in zip(tokens, token_types, strict=False) if token and kind in types]
        added = [AddedToken(token, special=special, normalized=False) for token in found]  # at once: each takes long
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
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
    if pre and pre not in PRE_TOKENIZERS:
        raise TsconvertError(
            f"{file.path}: pre-tokenizer {shown(pre)}; tsconvert knows {', '.join(PRE_TOKENIZERS)}, use it with the"
            " engine that it was made for"
        )
    splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in PRE_TOKENIZERS[pre or "gpt-2"]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":  # in these models' tokenizer.json; GGUF has no key for it
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def save_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer of a file, if it has one, as a checkpoint folder has it, with BOS, EOS and chat template.

    Raises:
        TsconvertError: it is of a kind that is not known, or damaged.
    """
    keys = tokenizer_keys(file)
    if not keys.get("tokens"):
        return
    tokenizer = build(file)
    count = tokenizer.get_vocab_size()
    ids = {name: special_id(file, keys, key.removesuffix("_token_id"), count) for name, key in SPECIAL_KEYS.items()}
    special = {name: str(tokenizer.id_to_token(token) or "") for name, token in ids.items() if token is not None}
    around = [adds_bos(keys) and special.get("bos"), bool(keys.get("add_eos_token", False)) and special.get("eos")]
    if _WHOLE not in file.metadata and any(around):
        before, after = ([each] if each else [] for each in around)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *(f"{each}:1" for each in before), "$B:1", *(f"{each}:1" for each in after)],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (*before, *after)],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {f"{name}_token": token for name, token in special.items() if token}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
