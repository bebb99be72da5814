"""Tokenizer files that are wrong: tokenizer.json, tokenizer.model, tokenizer_config.json."""

import json
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

from mutate import mutate_bytes, mutate_json

SENTENCE = "the people of the inn and the band that is in the town and in the end the train"
CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "add_bos_token": True, "add_eos_token": False, "model_max_length": 64, "clean_up_tokenization_spaces": False,
    "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
}  # fmt: skip


@cache
def contents() -> dict[str, Any]:
    """Tiny tokenizer.json files: byte-level BPE, and SentencePiece-like BPE with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    level = Tokenizer(models.BPE())
    level.pre_tokenizer, level.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    level.train_from_iterator([SENTENCE] * 3, trainer)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("i", "n"), ("▁", "in"), ("a", "n"), ("an", "d")]
    pieces = [
        *special,
        *(f"<0x{i:02X}>" for i in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyz",
        *("".join(m) for m in merges),
    ]
    piece = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(pieces)}, merges=merges, unk_token="<unk>", fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    piece.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    piece.add_special_tokens(special)
    return {"bpe": json.loads(level.to_str()), "spm": json.loads(piece.to_str())}


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, raw: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


@cache
def piece_model() -> bytes:
    """A SentencePiece BPE model."""
    vocab = contents()["spm"]["model"]["vocab"]
    parts = b""
    for piece, index in sorted(vocab.items(), key=lambda item: item[1]):
        kind = 2 if index == 0 else 3 if index < 3 else 6 if piece.startswith("<0x") else 1
        message = _field(1, piece.encode()) + b"\x15" + struct.pack("<f", -float(index)) + b"\x18" + _varint(kind)
        parts += _field(1, message)
    return parts + _field(2, b"\x18\x02") + _field(3, b"\x18\x01")


def make_tokenizer(rng: random.Random, folder: Path) -> None:
    """A folder with one tokenizer file damaged."""
    kind = rng.choice(("bpe", "spm", "model", "spm", "bpe"))
    wrong = rng.random()
    config = mutate_json(rng, CONFIG) if wrong < 0.25 else json.dumps(CONFIG).encode()
    (folder / "tokenizer_config.json").write_bytes(config)
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)
    if kind == "model" or rng.random() < 0.2:
        raw = piece_model()
        (folder / "tokenizer.model").write_bytes(mutate_bytes(rng, raw) if wrong >= 0.25 else raw)
    if kind != "model":
        content = contents()[kind]
        whole = mutate_json(rng, content) if wrong >= 0.25 else json.dumps(content).encode()
        (folder / "tokenizer.json").write_bytes(whole)


def read_tokenizer(folder: Path, rng: random.Random) -> None:
    """Both loaders: that of training and that of the export; and a text through each."""
    from tsconvert.common.errors import TsconvertError
    from tsconvert.quant.vocabulary.reader import read_vocabulary
    from tsconvert.text.tokenizer import load_tokenizer

    try:
        read_vocabulary(folder, 320, pre=rng.choice((None, None, "gpt-2")))
    except TsconvertError:
        load_tokenizer(folder)(SENTENCE)
