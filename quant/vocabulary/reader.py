"""A checkpoint's tokenizer, read for a GGUF file.

Two kinds: `llama`, SentencePiece BPE with byte fallback (sentencepiece.py), `gpt2`, byte-level BPE (bpe.py).
What is put around a text, BOS, EOS, a leading space, is observed on the tokenizer itself: files contradict each other.
"""

import json
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError, reason, shown
from ...common.files import read_json_object
from ...model.files.found_files import no_tokenizer
from ...model.files.gguf.vocabulary import BYTE, NORMAL, SPECIAL_KEYS, UNKNOWN, UNUSED
from . import bpe, sentencepiece
from .vocabulary import PAD_SCORE, Vocabulary

_MOST_HOLES = 100_000  # among the ids of a vocabulary


def read_vocabulary(folder: Path, rows: int, *, pre: str | None = None, eos: tuple[int, ...] = ()) -> Vocabulary:
    """The vocabulary of the checkpoint in ``folder``.

    Args:
        rows: the rows of the embedding; the vocabulary is padded with unused tokens, or cut, to as many.
        pre: the pre-tokenizer's name, for a byte-level BPE that is not recognized.
        eos: ids from config.json, for a tokenizer that names none.

    Raises:
        TsconvertError: no tokenizer, a kind that GGUF has no name for, or an unknown pre-tokenizer.
    """
    path = folder / "tokenizer.json"
    content = read_json_object(path) if path.is_file() else {}
    model_file = folder / "tokenizer.model"
    if not content and not model_file.is_file():
        raise no_tokenizer(folder)
    hf = auto_tokenizer(folder)
    try:
        if not content:
            sentencepiece.correct(hf, model_file)
            content = json.loads(hf.backend_tokenizer.to_str())
        vocabulary = _read(content, hf, folder, pre)
        _fit(vocabulary, rows, folder)
        _observe(vocabulary, hf, eos)
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
    return sentencepiece.read(content, folder / "tokenizer.model")


def _check_ids(content: dict[str, Any], folder: Path) -> None:
    """Refuse ids far beyond the number of tokens: a list is made that is as long as the largest."""
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content.get("added_tokens") or ())]
    for each in ids:
        if not isinstance(each, int) or not 0 <= each < 2 * len(ids) + _MOST_HOLES:
            raise TsconvertError(
                f"{folder}: tokenizer.json has {len(ids)} tokens and {shown(each)} among their ids; download it again"
            )


def auto_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers' AutoTokenizer makes of a checkpoint folder; no code of the folder's is run.

    Raises:
        TsconvertError: transformers cannot load it.
    """
    import transformers

    kind = transformers.PreTrainedTokenizerFast
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of every model type that is not its own
    try:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except AttributeError:  # what it raises on a config of ours with `rope_scaling`, as older versions wrote it
            tokenizer = None
        tokenizer = tokenizer if isinstance(tokenizer, kind) else kind.from_pretrained(folder, local_files_only=True)
        tokenizer.model_max_length = 10**30  # whatever the file says: nothing is cut, and nothing warned of
        return tokenizer
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise TsconvertError(
            f"{folder}: transformers cannot load the tokenizer ({reason}); download it again"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def corrected_tokenizer(folder: Path) -> Any:
    """`auto_tokenizer`, made to split as SentencePiece does where the folder has tokenizer.model alone."""
    hf = auto_tokenizer(folder)
    if not (folder / "tokenizer.json").is_file():
        sentencepiece.correct(hf, folder / "tokenizer.model")
    return hf


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


def _observe(vocabulary: Vocabulary, hf: Any, eos: tuple[int, ...]) -> None:
    """Special ids and templates as transformers has them; what it adds around a text, by encoding one."""
    for name in SPECIAL_KEYS:
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
