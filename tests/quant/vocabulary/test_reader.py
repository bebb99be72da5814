"""Vocabularies as GGUF has them, against the libraries that they come from."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tsconvert import embedded as embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.model.files.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED
from tsconvert.quant.vocabulary.reader import read_vocabulary
from tsconvert.quant.vocabulary.vocabulary import Vocabulary
from tsconvert.text.sentencepiece import read_model

Folder = Callable[..., Path]
TINY = embedded.folder("tiny-mistral")
NASTY = (
    "", "a", "Hello world", "two  spaces and   three", "\n", "\t\tx\n\n y", "naïve café — “quotes”", "日本語のテキスト",
    "🚀😶\u200d🌫️👩\u200d👩\u200d👧", "\x01\x7f", "def f(x):\n    return x**2  # ok\n", "3.14159 1,000,000 2024-01-01",
    "don't I'LL we've", "a" * 100, "\u200b\ufeff\u00a0x", "العربية हिन्दी", "[INST] x [/INST]", "é é", "\r\n\r\n",
    "a ▁ b", " a", "  a  b", "▁a",
)  # fmt: skip


@pytest.fixture
def spm(tmp_path: Path) -> Folder:
    """The embedded tokenizer's folder with some files left out."""

    def make(*files: str) -> Path:
        folder = tmp_path / "spm"
        folder.mkdir()
        for name in (*files, "tokenizer_config.json"):
            shutil.copyfile(TINY / name, folder / name)
        return folder

    return make


@pytest.fixture
def bpe(tmp_path: Path) -> Folder:
    """A byte-level BPE with digits apart, trained on a sentence."""

    def make(*, bos: bool = False, template: str | None = None) -> Path:
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        special = ["<|endoftext|>", "<s>"]
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokenizer.train_from_iterator(["the cat sat on the mat with the other cats of the house"] * 3, trainer)
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False), "<|odd|>"])
        if bos:
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|endoftext|>")
        if template:
            fast.chat_template = template
        fast.save_pretrained(tmp_path / "bpe")
        return tmp_path / "bpe"

    return make


def merged_by_score(vocabulary: Vocabulary, text: str) -> list[int]:
    """llama.cpp's SentencePiece tokenizer, slowly: join the neighbours with the best piece, the first of equals."""
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    parts = list(("▁" + text if vocabulary.add_space_prefix and text else text).replace(" ", "▁"))
    while True:
        joins = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not joins:
            break
        at = min(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()])]


def sentence(folder: Path, rows: int = 4096, **options) -> str:
    with pytest.raises(TsconvertError) as caught:
        read_vocabulary(folder, rows, **options)
    return str(caught.value)


def test_pieces_scores_and_types_are_sentencepieces(spm: Folder):
    folder = spm("tokenizer.json", "tokenizer.model")
    vocabulary = read_vocabulary(folder, 4096)
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert vocabulary.tokens == [library.id_to_piece(i) for i in range(4096)]
    assert vocabulary.scores == pytest.approx([library.get_score(i) for i in range(4096)])
    assert [kind == BYTE for kind in vocabulary.types] == [library.is_byte(i) for i in range(4096)]
    assert [kind == CONTROL for kind in vocabulary.types] == [library.is_control(i) for i in range(4096)]
    assert (vocabulary.model, vocabulary.pre, vocabulary.special) == (
        "llama",
        "default",
        {"bos": 1, "eos": 2, "unk": 0},
    )
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (True, False, True)


@pytest.mark.parametrize("files", [("tokenizer.json", "tokenizer.model"), ("tokenizer.json",), ("tokenizer.model",)])
def test_merging_by_score_gives_sentencepieces_ids(spm: Folder, files: tuple[str, ...]):
    vocabulary = read_vocabulary(spm(*files), 4096)
    library = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    for text in NASTY:
        assert merged_by_score(vocabulary, text) == library.encode(text), text


def test_a_sentencepiece_model_alone_makes_a_tokenizer_json_of_the_same_ids(spm: Folder):
    vocabulary = read_vocabulary(spm("tokenizer.model"), 4096)
    library = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    rebuilt = Tokenizer.from_str(vocabulary.huggingface_json)
    for text in NASTY:
        assert rebuilt.encode(text).ids == [1, *library.encode(text)], text
    assert not vocabulary.engine_notes


def test_added_tokens_take_their_ids_and_types(spm: Folder):
    folder = spm("tokenizer.json", "tokenizer.model")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [("<|im_end|>", False), ("<tool>", False), ("[X]", True)]
    content["added_tokens"] += [{"id": 4096 + i, "content": t, "special": s, **plain} for i, (t, s) in enumerate(added)]
    path.write_text(json.dumps(content), encoding="utf-8")
    vocabulary = read_vocabulary(folder, 4104)
    assert vocabulary.tokens[4096:] == ["<|im_end|>", "<tool>", "[X]", *(f"[PAD{i}]" for i in range(4099, 4104))]
    assert vocabulary.types[4096:] == [CONTROL, USER_DEFINED, CONTROL] + [UNUSED] * 5
    cut = read_vocabulary(folder, 4097)
    assert (len(cut.tokens), len(cut.scores), len(cut.types)) == (4097, 4097, 4097)
    assert cut.notes == ["2 tokens beyond the embedding's 4097 rows are left out"]


def test_leading_spaces_that_llama_cpp_treats_otherwise_are_noted(spm: Folder):
    folder = spm("tokenizer.json")
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.save(str(path))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (note,) = read_vocabulary(folder, 4096).engine_notes
    assert note == (
        "this tokenizer puts no space before a text that begins with one, nor after a special token, and llama.cpp's"
        " always does: such texts get other ids there"
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.save(str(path))
    assert read_vocabulary(folder, 4096).engine_notes == []


def test_what_llama_cpp_does_otherwise_is_noted(spm: Folder, bpe: Folder, tmp_path: Path):
    text = tmp_path / "text"
    text.write_text("a few words to train on, a few more words, and some others\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, model_type="bpe", minloglevel=2,
        byte_fallback=True, user_defined_symbols=["<sep>"], normalization_rule_name="identity",
    )  # fmt: skip
    (note,) = read_vocabulary(tmp_path, 300).engine_notes
    assert note == (
        "this tokenizer puts no space before a text that begins with one, nor after a special token, and llama.cpp's"
        " always does: such texts get other ids there"
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, model_type="bpe", minloglevel=2,
        byte_fallback=True, user_defined_symbols=["<sep>"], normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    (note,) = read_vocabulary(tmp_path, 300).engine_notes
    assert note == "this tokenizer puts no space after <sep>, and llama.cpp's does: what follows gets other ids there"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, model_type="bpe", minloglevel=2,
        byte_fallback=True, user_defined_symbols=["▁▁"], normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=False,
    )  # fmt: skip
    (note,) = read_vocabulary(tmp_path, 300).engine_notes
    assert note == (
        "llama.cpp finds this tokenizer's added tokens of spaces by spaces alone, and not by the sign U+2581: texts"
        " with that sign get other ids there"
    )
    folder = bpe()
    (note,) = read_vocabulary(folder, 310, pre="tekken").engine_notes
    assert note == (
        "llama.cpp's expression for tekken ends words at combining marks, and not at capital letters outside of ASCII:"
        " such texts get other ids there"
    )
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(path))
    (note,) = read_vocabulary(folder, 310, pre="smollm").engine_notes
    assert note == (
        "this tokenizer normalizes characters (NFC) and llama.cpp's does not: accents of two characters and the like"
        " get other ids there"
    )


def test_byte_level_bpe(bpe: Folder):
    folder = bpe(template="{{ messages }}")
    vocabulary = read_vocabulary(folder, 310, pre="smollm")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    size = len(content["model"]["vocab"])
    by_id = {index: token for token, index in content["model"]["vocab"].items()}
    assert vocabulary.tokens[2:size] == [by_id[i] for i in range(2, size)]
    assert vocabulary.types[:2] == [CONTROL, CONTROL]
    assert vocabulary.types[2:size] == [NORMAL] * (size - 2)
    assert vocabulary.tokens[size : size + 3] == ["<tool>", "<|odd|>", f"[PAD{size + 2}]"]
    assert vocabulary.types[size : size + 3] == [USER_DEFINED, CONTROL, UNUSED]
    assert vocabulary.merges == [" ".join(merge) for merge in content["model"]["merges"]]
    assert "t h" in vocabulary.merges
    assert vocabulary.special == {"bos": 1, "eos": 0}
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (False, False, False)
    keys = vocabulary.metadata(huggingface=True)
    assert keys["tokenizer.chat_template"].value == "{{ messages }}"
    assert keys["tokenizer.huggingface.json"].value == (folder / "tokenizer.json").read_text(encoding="utf-8")
    assert "tokenizer.ggml.scores" not in keys


def test_bos_is_what_the_tokenizer_adds(bpe: Folder):
    assert read_vocabulary(bpe(bos=True), 310, pre="smollm").add_bos


def test_named_chat_templates(bpe: Folder):
    vocabulary = read_vocabulary(bpe(), 310, pre="smollm")
    vocabulary.chat_templates = {"default": "A", "tool_use": "B"}
    keys = {k: v.value for k, v in vocabulary.metadata(huggingface=False).items() if "chat" in k}
    assert keys == {
        "tokenizer.chat_template": "A", "tokenizer.chat_template.tool_use": "B",
        "tokenizer.chat_templates": ("tool_use",),
    }  # fmt: skip


def test_an_unknown_pre_tokenizer_must_be_named(bpe: Folder):
    folder = bpe()
    told = sentence(folder, 310)
    assert told.startswith(f"{folder}: the pre-tokenizer is not in llama.cpp's list (fingerprint ")
    assert told.endswith(
        "); name the one that splits text the same way with --pre NAME, one of a.x-4.0, chatglm-bpe, dbrx,"
        " deepseek-coder, deepseek-llm, deepseek-r1-qwen, falcon3, glm4, gpt-2, gpt-4o, granite-docling, kormo,"
        " llama-bpe, megrez, mellum, midm-2.0, minerva-7b, poro-chat, qwen2, refact, seed-coder, smaug-bpe, smollm,"
        " starcoder, tekken, trillion, viking"
    )


def test_powerinfer_leaves_out_the_space_before_a_text():
    vocabulary = read_vocabulary(embedded.folder("tiny-mistral"), 4096)
    (note,) = vocabulary.check_powerinfer()
    assert note == (
        "PowerInfer's main leaves out the space that this tokenizer puts before a text: begin a prompt with a space"
        " there"
    )


def test_powerinfer_splits_as_gpt_2(bpe: Folder):
    vocabulary = read_vocabulary(bpe(), 310, pre="smollm")
    (note,) = vocabulary.check_powerinfer()
    assert note == (
        "PowerInfer splits text as GPT-2 does and this tokenizer is smollm: digits and punctuation may fall into other"
        " tokens than in training"
    )
    vocabulary.tokens[5] = vocabulary.tokens[4]
    with pytest.raises(TsconvertError) as caught:
        vocabulary.check_powerinfer()
    assert str(caught.value) == (
        f"token 5 is {vocabulary.tokens[4]!r} again, and PowerInfer needs them distinct; export with --target sparse"
    )


def test_what_cannot_be_read(spm: Folder, tmp_path: Path):
    folder = spm("tokenizer.json", "tokenizer.model")
    assert sentence(folder, pre="smollm") == (
        f"{folder}: --pre names a byte-level BPE's pre-tokenizer and this vocabulary is SentencePiece; leave it out"
    )
    model = folder / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:-7])
    (note,) = read_vocabulary(folder, 4096).notes
    assert note == (
        f"{model} belongs to another model than {folder / 'tokenizer.json'} (it cannot be read): the vocabulary is"
        " tokenizer.json's alone"
    )
    (folder / "tokenizer.json").unlink()
    assert sentence(folder) == f"{model}: not a SentencePiece model that can be read; download it again"
    (folder / "tokenizer.json").write_text("{")
    assert sentence(folder).startswith(f"{folder / 'tokenizer.json'}: not JSON (")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert sentence(empty) == (
        f"{empty}: no tokenizer (tokenizer.json, tokenizer.model or tekken.json); copy the model's own there"
    )


def test_other_kinds_are_refused(tmp_path: Path):
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    assert sentence(tmp_path) == (
        f"{tmp_path}: the tokenizer is 'Unigram' and GGUF's Llama engines take SentencePiece BPE and byte-level BPE;"
        " this model cannot be exported with it"
    )


def test_a_unigram_sentencepiece_model_is_refused(tmp_path: Path):
    text = tmp_path / "text"
    text.write_text("a few words to train on, a few more words, and some others\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=24, model_type="unigram", minloglevel=2
    )
    with pytest.raises(TsconvertError) as caught:
        read_model(tmp_path / "m.model")
    assert str(caught.value) == (
        f"{tmp_path / 'm.model'}: not a SentencePiece BPE model, the only kind that GGUF has; this model cannot be"
        " exported with it"
    )
