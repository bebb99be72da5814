"""The one loader: tokenizer.json as the tokenizers library reads it, tokenizer.model as SentencePiece does."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from nasty_texts import MARKERS, NASTY, with_markers
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.text.tokenizer import load_tokenizer

TINY = embedded.folder("tiny-mistral")
PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
LINES = ["the cat sat on the mat with the other cats of the house, 12 of them  and  more"] * 30


def test_the_tokenizer_begins_a_text_as_the_model_was_trained():
    tokenizer = load_tokenizer(TINY)
    ids = tokenizer("The Senate").input_ids
    assert ids[0] == 1
    assert tokenizer.decode(ids[1:]) == "The Senate"


@pytest.mark.parametrize("form", ["as it is", "Llama 2", "first"])
def test_tokenizer_json_is_the_truth(form: str, tmp_path: Path):
    """Whatever the model's type, the tokenizer's class, and its configuration say."""
    shutil.copyfile(TINY / "tokenizer.model", tmp_path / "tokenizer.model")
    library = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    if form != "as it is":
        library.normalizer = PREPEND if form == "Llama 2" else None
        library.pre_tokenizer = (
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False) if form == "first" else None
        )
    texts = [*NASTY, *with_markers()]
    wanted = {text: library.encode(text).ids for text in texts}
    library.enable_truncation(8)
    library.enable_padding(length=8)
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "rope_scaling": {"type": "odd"}}))
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": True, "legacy": False}
    special = {"bos_token": "<s>", "eos_token": "cat", "pad_token": "<pad>", "additional_special_tokens": ["house"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | special | {"model_max_length": 4}))
    tokenizer = load_tokenizer(tmp_path)
    assert {text: tokenizer(text).input_ids for text in texts} == wanted
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (1, None)


def split_by(markers: dict[str, int], library: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """SentencePiece for each stretch between markers."""
    parts = re.split(f"({'|'.join(map(re.escape, sorted(markers, key=len, reverse=True)))})", text)
    return [token for part in parts for token in ([markers[part]] if part in markers else library.encode(part))]


def test_a_sentencepiece_model_alone_gives_its_ids(tmp_path: Path):
    shutil.copyfile(TINY / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    library = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    tokenizer, markers = load_tokenizer(tmp_path), {"<unk>": 0, "<s>": 1, "</s>": 2}
    for text in (*NASTY, *with_markers()):
        assert tokenizer(text).input_ids == [1, *split_by(markers, library, text)], text
        ids = library.encode(text)
        if text and "<" not in text:
            assert tokenizer.decode(ids) == library.decode(ids), text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


@pytest.mark.parametrize("how", ["added_tokens.json", "added_tokens_decoder", "additional_special_tokens"])
def test_what_is_added_is_found_in_the_text_as_it_stands(how: str, tmp_path: Path):
    """ChatML on Mistral: from the second marker on it fell apart, and `user` lost its space."""
    shutil.copyfile(TINY / "tokenizer.model", tmp_path / "tokenizer.model")
    config: dict = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>", "lstrip": False}}
    added = {"<|im_end|>": 4096, "<|im_start|>": 4097}
    if how == "added_tokens.json":
        (tmp_path / how).write_text(json.dumps(added))
    elif how == "added_tokens_decoder":
        flags = {"normalized": True, "special": False}
        config[how] = {str(index): {"content": text, **flags} for text, index in added.items()}
    else:
        config[how] = ["<|im_start|>"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    library = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    tokenizer, markers = load_tokenizer(tmp_path), {"<unk>": 0, "<s>": 1, "</s>": 2} | added
    talk = "".join(f"<|im_start|>{who}\nsome  words<|im_end|>\n" for who in ("system", "user", "assistant"))
    for text in (talk, *with_markers(tuple(markers))):
        assert tokenizer(text).input_ids == [1, *split_by(markers, library, text)], text
    assert tokenizer.eos_token_id == 4096


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """trained(...) gives a folder with a SentencePiece BPE model of a few lines and these settings."""

    def make(**settings) -> Path:
        folder = tmp_path_factory.mktemp("spm")
        (folder / "text").write_text("\n".join(LINES), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), model_type="bpe", minloglevel=2,
            **{"vocab_size": 340, "byte_fallback": True} | settings,
        )  # fmt: skip
        return folder

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": True},
        {"byte_fallback": False, "vocab_size": 60, "normalization_rule_name": "identity"},
        {"normalization_rule_name": "identity", "user_defined_symbols": ["<sep>", "<sep>x", "a.b"],
         "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "user_defined_symbols": ["<sep>", "[X]"], "add_dummy_prefix": False},
    ],
    ids=["plain", "no prefix", "spaces", "no bytes", "defined", "defined, no prefix"],
)  # fmt: skip
def test_sentencepieces_settings(trained: Callable[..., Path], settings: dict):
    folder = trained(**settings)
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    texts = [text for text in NASTY if "<s" not in text and "</s" not in text and "\0" not in text]
    defined = ["the<sep>cat", " <sep> <sep>", "a.b cat", "<sep>x<sep>  y", "cat [X] mat", "<sep>\n<sep>\n", "axb a.b"]
    for text in (*texts, *defined):
        assert tokenizer(text).input_ids == [1, *library.encode(text)], text


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"treat_whitespace_as_suffix": True}, "has treat_whitespace_as_suffix, which tsconvert does not compute"),
        *(
            (
                {"normalization_rule_name": name},
                (
                    f"normalizes characters ({name}), which tsconvert does not compute as SentencePiece does; save the"
                    " tokenizer as tokenizer.json there, and that counts"
                ),
            )
            for name in ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
        ),
    ],
)
def test_settings_of_sentencepiece_that_are_not_computed(trained: Callable[..., Path], settings: dict, what: str):
    folder = trained(**settings)
    with pytest.raises(TsconvertError) as caught:
        load_tokenizer(folder)
    assert str(caught.value) == f"{folder / 'tokenizer.model'}: the SentencePiece model {what}"


def test_a_damaged_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TsconvertError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def test_chat_templates_as_transformers_finds_them(tmp_path: Path):
    shutil.copyfile(TINY / "tokenizer.json", tmp_path / "tokenizer.json")
    templates = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": templates}))
    assert load_tokenizer(tmp_path).chat_template == {"default": "A", "tool_use": "B"}
    config.write_text(json.dumps({"chat_template": "C"}))
    assert load_tokenizer(tmp_path).chat_template == "C"
    (tmp_path / "chat_template.jinja").write_text("D")
    assert load_tokenizer(tmp_path).chat_template == "D"
    assert len(MARKERS) > 20
