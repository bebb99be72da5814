"""The tokenizer of a checkpoint folder: the only loader, for training, evaluation, export and verification.

tokenizer.json is the truth where it is there, exactly as the `tokenizers` library reads it; tokenizer.model comes next,
by SentencePiece's own rules, then Mistral's tekken.json. config.json and transformers' classes have no say, for they
change what the files say.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, reason
from ..common.files import read_json_object
from ..model.files.found_files import no_tokenizer
from .sentencepiece import backend_of, read_model
from .tekken import SPECIAL, read_tekken

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ENDLESS = 10**30  # tokens: no warning about long texts


def load_tokenizer(folder: Path) -> Any:
    """transformers' `PreTrainedTokenizerFast` of a checkpoint folder; no code of the folder's is run.

    Its ids are those of the `tokenizers` library for tokenizer.json, else those of SentencePiece for tokenizer.model
    (of mistral-common for tekken.json),
    with the special tokens and added tokens of the files beside it, which are found in the text as it stands.

    Raises:
        TsconvertError: there is none, or it cannot be read.
    """
    try:
        return _load(folder)
    except TsconvertError:
        raise
    except Exception as error:  # the libraries raise plain Exception
        raise TsconvertError(
            f"{folder}: the tokenizer cannot be read ({reason(error)}); copy the model's own there"
        ) from error


def _load(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    config, names = _settings(folder)
    path, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
    if path.is_file():
        tokenizer = _of_json(path)
    elif model_file.is_file():
        model = read_model(model_file)
        if model.normalization:  # the library's takes marks away that stand behind a character which it changes
            raise TsconvertError(
                f"{model_file}: the SentencePiece model normalizes characters ({model.normalization}), which tsconvert"
                " does not compute as SentencePiece does; save the tokenizer as tokenizer.json there, and that counts"
            )
        names = model.special | names
        backend = backend_of(model, _added(folder, config, names, [piece for piece, _, _ in model.pieces]))
        backend.post_processor = _around(backend, config, names)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=_ENDLESS)
    elif (tekken := folder / "tekken.json").is_file():
        names = SPECIAL | names
        backend = read_tekken(tekken)
        backend.post_processor = _around(backend, config, names)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=_ENDLESS)
    else:
        raise no_tokenizer(folder)
    backend = tokenizer.backend_tokenizer
    for name in _NAMES:  # set afterwards: given at the start they are added to the vocabulary, and found in texts
        token = names.get(name) or _stated(folder, name, backend)
        if token and backend.token_to_id(token) is not None:
            setattr(tokenizer, name, token)
    tokenizer.chat_template = _chat_template(folder, config)
    return tokenizer


def _of_json(path: Path) -> Any:
    """tokenizer.json, whose rows are cut to the context later, whatever it says of truncation and padding."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), model_max_length=_ENDLESS)
    tokenizer.backend_tokenizer.no_truncation()
    if tokenizer.backend_tokenizer.padding is None:
        return tokenizer
    backend = Tokenizer.from_file(str(path))  # again, for the token to pad with was added to the vocabulary
    backend.no_truncation()
    backend.no_padding()
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=_ENDLESS)


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer_config.json, and the special tokens that it and special_tokens_map.json name."""
    config, older = (
        read_json_object(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    known = config | ({} if "added_tokens_decoder" in config else older)
    return known, {name: token for name in _NAMES if (token := _content(known.get(name) or older.get(name)))}


def _content(token: Any) -> str:
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else ""


def _stated(folder: Path, name: str, backend: Any) -> str | None:
    """A special token that only config.json (by its id) or the tokenizer's own model names."""
    if name == "unk_token":
        return getattr(backend.model, name, None)
    path = folder / "config.json"
    if name not in ("bos_token", "eos_token") or not path.is_file():
        return None
    ids = read_json_object(path).get(f"{name}_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    return backend.id_to_token(first) if isinstance(first, int) and first >= 0 else None


def _added(folder: Path, config: dict[str, Any], names: dict[str, str], pieces: list[str]) -> dict[int, Any]:
    """What is added to tokenizer.model, by id: `added_tokens_decoder`, added_tokens.json, then what has no id yet."""
    from tokenizers import AddedToken

    special = {*names.values(), *map(_content, _extra(config))}
    path = folder / "added_tokens.json"
    known = read_json_object(path) if path.is_file() else {}
    found = {index: AddedToken(text, normalized=False, special=text in special) for text, index in known.items()}
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip", "special")}
        found[int(index)] = AddedToken(token["content"], normalized=False, **flags)
    last = max([len(pieces) - 1, *found])
    have = {*pieces, *(token.content for token in found.values())}
    for text in dict.fromkeys([*names.values(), *map(_content, _extra(config))]):
        if text and text not in have:
            last += 1
            found[last] = AddedToken(text, normalized=False, special=True)
    return found


def _extra(config: dict[str, Any]) -> Iterable[Any]:
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    return extra.values() if isinstance(extra, dict) else extra


def _around(backend: Any, config: dict[str, Any], names: dict[str, str]) -> Any:
    """BOS before a text and EOS after it, as tokenizer_config.json says; BOS alone if it says nothing."""
    from tokenizers import processors

    ids = {name: backend.token_to_id(names.get(name, "")) for name in ("bos_token", "eos_token")}
    asked = {"bos_token": config.get("add_bos_token", True), "eos_token": config.get("add_eos_token", False)}
    bos, eos = ([names[name]] if ids[name] is not None and asked[name] else [] for name in ids)
    special = [(names[name], index) for name, index in ids.items() if index is not None]
    return processors.TemplateProcessing(single=[*bos, "$A", *eos], special_tokens=special)


def _chat_template(folder: Path, config: dict[str, Any]) -> Any:
    """Files come before what tokenizer_config.json says, as for transformers; several by name, or one."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    if not found:
        stated = config.get("chat_template")
        if not isinstance(stated, list):
            return stated
        found = {each["name"]: each["template"] for each in stated}
    return found["default"] if list(found) == ["default"] else found
