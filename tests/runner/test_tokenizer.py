"""Tokenizers rebuilt from GGUF keys against the libraries that they come from, and text that streams."""

import json
from types import SimpleNamespace

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as bpe_models

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.model.files.gguf.tokenizer import PRE_TOKENIZERS
from tsconvert.runner.tokenizer import GgufTokenizer, TextStream

TEXTS = [
    "Hello, world!", "  two  spaces and a tab\t", "", " ", "line\nbreak\n\n", "grüße, naïve café — 中文字 🙂 ok",
    "x=12345;", "I'm sure they've said: 'don't'.", "▁odd ▁", "<s> spelled out </s> tokens",
]  # fmt: skip


def gguf(**metadata):
    """What GgufTokenizer needs of a file."""
    return SimpleNamespace(path="m.gguf", metadata={key.replace("__", "."): value for key, value in metadata.items()})


@pytest.fixture(scope="module")
def pieces():
    """The embedded model's SentencePiece vocabulary, as llama.cpp's converter writes it."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.Load(str(embedded.folder("tiny-mistral") / "tokenizer.model"))
    kinds = [
        2 if processor.IsUnknown(i) else 3 if processor.IsControl(i) else 6 if processor.IsByte(i) else 1
        for i in range(processor.GetPieceSize())
    ]
    names = {
        "model": "llama", "tokens": [processor.IdToPiece(i) for i in range(len(kinds))], "token_type": kinds,
        "scores": [processor.GetScore(i) for i in range(len(kinds))], "bos_token_id": 1, "eos_token_id": 2,
        "unknown_token_id": 0,
    }  # fmt: skip
    return processor, {f"tokenizer.ggml.{name}": value for name, value in names.items()}


def test_sentencepiece_from_pieces_and_scores(pieces):
    processor, keys = pieces
    ours = GgufTokenizer(gguf(**keys))
    assert (ours.bos, ours.eos, ours.add_bos) == (1, {2}, True)
    for text in TEXTS[:-1]:
        if text.strip():
            assert ours.encode(text)[1:] == processor.EncodeAsIds(text), text
        assert ours.decode(ours.encode(text)) == processor.DecodeIds(processor.EncodeAsIds(text)), text
    assert ours.encode("<s>a</s>", special=False)[0] == 1
    assert ours.encode("<s>a</s>", special=False)[-1] == 2
    assert ours.encode("a", special=False)[0] != 1


def test_the_whole_tokenizer_json_comes_first(pieces):
    text = (embedded.folder("tiny-mistral") / "tokenizer.json").read_text(encoding="utf-8")
    reference = Tokenizer.from_str(text)
    ours = GgufTokenizer(gguf(**pieces[1], tokenizer__huggingface__json=text))
    for sample in TEXTS:
        assert ours.encode(sample, special=False) == reference.encode(sample, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE trained on a few lines."""
    tokenizer = Tokenizer(bpe_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS * 3 + ["the cat sat on the mat 1234 5678"] * 5, trainer)
    content = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    keys = {
        "model": "gpt2", "tokens": tokens, "merges": [" ".join(pair) for pair in content["merges"]],
        "token_type": [3] + [1] * (len(tokens) - 1), "eos_token_id": 0,
    }  # fmt: skip
    return tokenizer, {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


@pytest.mark.parametrize(
    ("pre", "split"),
    [
        ("gpt-2", []),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True)]),
        ("llama-bpe", None),
        ("tekken", None),
        ("qwen2", None),
    ],
)
def test_byte_level_bpe_of_every_pre_tokenizer(byte_level, pre, split):
    reference, keys = byte_level
    ours = GgufTokenizer(gguf(**keys, tokenizer__ggml__pre=pre))
    assert ours.add_bos is False
    if split is not None:
        reference.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for text in TEXTS:
        tokens = ours.encode(text)
        assert ours.decode(tokens) == text
        if split is not None:
            assert tokens == reference.encode(text).ids
    assert ours.encode("<|end|>") == [0]
    if pre != "gpt-2" and pre != "llama-bpe":
        assert all(ours.piece(token) in "0123456789" for token in ours.encode("1234567"))


def test_a_file_without_a_pre_tokenizer_is_warned_of(byte_level, capsys):
    keys = byte_level[1]
    without = GgufTokenizer(gguf(**keys))
    assert capsys.readouterr().err == (
        "m.gguf: no key tokenizer.ggml.pre says how text is split; GPT-2's way is taken, and may not be the model's\n"
    )
    assert [without.encode(text) for text in TEXTS] == [
        GgufTokenizer(gguf(**keys, tokenizer__ggml__pre="gpt-2")).encode(text) for text in TEXTS
    ]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pieces", "byte_level"])
def test_streamed_text_is_the_text_and_never_splits_a_character(request, kind):
    ours = GgufTokenizer(gguf(**request.getfixturevalue(kind)[1]))
    text = " ".join(text for text in TEXTS[:-1] if text.strip()) + " 🙂🙂 中文 end"
    prompt, tokens = ours.encode("Say:"), ours.encode(" " + text, special=False)
    stream = TextStream(ours, prompt)
    parts = [stream.push(token) for token in tokens]
    assert not any("\ufffd" in part for part in parts)
    whole = ours.decode([*prompt, *tokens])[len(ours.decode(prompt)) :]
    assert "".join([*parts, stream.flush()]) == whole
    assert parts.count("") >= 2  # the emoji's first bytes wait for the rest


def test_an_unfinished_character_is_shown_at_the_end(byte_level):
    ours = GgufTokenizer(gguf(**byte_level[1]))
    stream = TextStream(ours)
    first = ours.encode("🙃")[0]
    assert stream.push(first) == ""
    assert stream.flush() == "\ufffd"


def test_chat_templates(pieces):
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}{% if messages[0].role == 'no' %}"
        "{{ raise_exception('roles') }}{% endif %}"
    )
    ours = GgufTokenizer(gguf(**pieces[1], tokenizer__chat_template=template))
    tokens = ours.chat([{"role": "user", "content": "hi"}])
    assert tokens == ours.encode("<s>[user] hi</s>[assistant]", special=False)
    assert tokens.count(1) == 1
    with pytest.raises(TsconvertError) as caught:
        ours.chat([{"role": "no", "content": "hi"}])
    assert str(caught.value) == "m.gguf: the chat template refuses these messages (roles); leave --system or --chat out"
    with pytest.raises(TsconvertError, match=r"^m.gguf: the file has no chat template; leave --chat out$"):
        GgufTokenizer(gguf(**pieces[1])).chat([{"role": "user", "content": "hi"}])


OTHERS = ", use it with the engine that it was made for"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "the file has no tokenizer; export it with the model's own"),
        ({"model": "bert"}, "tokenizer model 'bert'; tsconvert knows llama and gpt2" + OTHERS),
        ({"scores": [1.0]}, "the tokenizer's keys are damaged (list index out of range); write the file again"),
        ({"model": "gpt2", "pre": "odd", "merges": []},
         "pre-tokenizer 'odd'; tsconvert knows " + ", ".join(PRE_TOKENIZERS) + OTHERS),
    ],
)  # fmt: skip
def test_tokenizers_that_cannot_be_built(pieces, changes, message):
    keys = pieces[1] | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(TsconvertError) as caught:
        GgufTokenizer(gguf(**keys))
    assert str(caught.value) == f"m.gguf: {message}"
