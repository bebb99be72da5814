"""tekken.json, Mistral's own form of its byte-level tokenizer: what the file says, as a `tokenizers.Tokenizer`."""

import base64
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError
from ..common.files import read_json_object
from ..model.files.gguf.vocabulary import BYTE_OF, LONGEST_TOKEN, merges_of

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# of files before version 11, which do not list them
_UNLISTED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_MOST = 10_000_000  # tokens


def read_tekken(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a tekken.json; special tokens in a text are found, BOS and EOS left out.

    Special tokens have the first ids, and those that the file does not name are fillers; a token's id is their number
    and its rank. Two neighbours become the token that they make, the lowest rank first, and a word that is a token is
    that (tiktoken's rules, mistral-common's Tekkenizer).

    Raises:
        TsconvertError: the file is damaged.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    content = read_json_object(path)
    try:
        config = content["config"]
        count = int(config["default_num_special_tokens"])
        plain = int(config["default_vocab_size"]) - count
        special = _special(content.get("special_tokens"), count)
        bytes_of = [base64.b64decode(each["token_bytes"], validate=True) for each in content["vocab"][:plain]]
        if not 256 <= len(bytes_of) == plain < _MOST or max(map(len, bytes_of)) > LONGEST_TOKEN:
            raise ValueError("fewer tokens than the file says, or none that any model has")
        characters = {byte: character for character, byte in BYTE_OF.items()}
        ids = {"".join(characters[byte] for byte in token): count + rank for rank, token in enumerate(bytes_of)}
        scores = [-float(rank) for rank in range(-count, plain)]
        vocabulary = {name: index for index, name in enumerate(special)} | ids
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges_of(ids, scores), ignore_merges=True))
        split = pre_tokenizers.Split(Regex(config["pattern"]), "isolated")
    except Exception as error:  # KeyError and the like, and what the library raises
        raise TsconvertError(f"{path}: no tekken tokenizer that can be read ({error!r}); download it again") from None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


def _special(listed: Any, count: int) -> list[str]:
    """The special tokens by id."""
    if not 0 <= count < _MOST:
        raise ValueError(f"{count} special tokens")
    named = dict(enumerate(_UNLISTED)) if listed is None else {int(each["rank"]): each["token_str"] for each in listed}
    return [str(named.get(index, f"<SPECIAL_{index}>")) for index in range(count)]
