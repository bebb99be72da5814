"""GGUF files that are wrong in one to four places: keys, types, counts, shapes, offsets, names, weights.

A file is held as a description that can say anything; `written` lays it out whether or not that makes sense.
"""

import random
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from mutate import FLOATS, NUMBERS, TEXTS, mutate_bytes

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
_TYPE_IDS = (*range(42), 255, 2**31, 2**32 - 1)
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@dataclass
class Tensor:
    name: str
    ne: list[int]
    """Dimensions as the file has them, the contiguous one first."""
    type_id: int
    raw: bytes
    offset: int | None = None
    """None is where the tensor lies."""


@dataclass
class Description:
    magic: bytes = b"GGUF"
    version: int = 3
    keys: list[tuple[str, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    alignment: int = 32
    counts: tuple[int, int] | None = None
    """What the header says; None is the truth."""


def _number(kind: int, value: Any) -> bytes:
    code = _CODES[kind]
    if code in "fd":
        number = float(value) if isinstance(value, int | float) else 0.0
        return struct.pack("<" + code, number if code == "d" else float(np.clip(number, -3e38, 3e38)))
    whole = int(value) if isinstance(value, int | bool) else 7
    size = struct.calcsize(code)
    return (whole & (256**size - 1)).to_bytes(size, "little")


def _text(value: Any) -> bytes:
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text(value)
    if kind == ARRAY:
        inner, items, *said = value if isinstance(value, tuple) else (U32, [value, value])
        parts = b"".join(_value(inner, item) for item in items)
        return struct.pack("<IQ", inner & 0xFFFFFFFF, (said[0] if said else len(items)) & (2**64 - 1)) + parts
    return _number(kind, value) if kind in _CODES else b"\x00" * 8


def written(file: Description) -> bytes:
    """The bytes of a file."""
    tensors, keys = file.counts or (len(file.tensors), len(file.keys))
    out = [file.magic, struct.pack("<IQQ", file.version & 0xFFFFFFFF, tensors & (2**64 - 1), keys & (2**64 - 1))]
    out += [_text(name) + struct.pack("<I", kind & 0xFFFFFFFF) + _value(kind, value) for name, kind, value in file.keys]
    at, data = 0, []
    for tensor in file.tensors:
        offset = at if tensor.offset is None else tensor.offset
        dims = b"".join(struct.pack("<Q", n & (2**64 - 1)) for n in tensor.ne)
        tail = struct.pack("<IQ", tensor.type_id & 0xFFFFFFFF, offset & (2**64 - 1))
        out.append(_text(tensor.name) + struct.pack("<I", len(tensor.ne)) + dims + tail)
        padded = tensor.raw + b"\x00" * (-len(tensor.raw) % 32)
        data.append(padded)
        at += len(padded)
    head = b"".join(out)
    return head + b"\x00" * (-len(head) % 32) + b"".join(data)


def copied(file: Description) -> Description:
    """A description to change: bytes and keys' values are replaced as a whole, never changed."""
    tensors = [replace(tensor, ne=list(tensor.ne)) for tensor in file.tensors]
    return replace(file, keys=list(file.keys), tensors=tensors)


def mutate_gguf(rng: random.Random, base: Description) -> bytes:
    """One to four changes of the description, now and then of the bytes as well."""
    if rng.random() < 0.2:
        raw = written(base)
        return mutate_bytes(rng, raw, len(raw) - sum(len(tensor.raw) for tensor in base.tensors))
    file = copied(base)
    if rng.random() < 0.25:  # sound but for its weights, so that it runs
        for tensor in rng.sample(file.tensors, rng.randrange(1, 4)):
            _change_weights(rng, tensor)
        return written(file)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice((_change_key, _change_key, _change_key, _change_tensor, _change_tensor, _change_whole))(rng, file)
    raw = written(file)
    return mutate_bytes(rng, raw) if rng.random() < 0.05 else raw


def _change_key(rng: random.Random, file: Description) -> None:
    if not file.keys:
        return
    at = rng.randrange(len(file.keys))
    name, kind, value = file.keys[at]
    what = rng.randrange(8)
    if what == 0:
        del file.keys[at]
    elif what == 1:
        file.keys[at] = (name, rng.choice((*range(13), 13, 99, 2**31)), 3 if kind == ARRAY else value)
    elif what == 2:
        file.keys.append((name, kind, value))
    elif what == 3:
        extra = ("general.alignment", "split.count", "split.no", "expert_count", "turbosparse.predictor.file")
        file.keys.append((rng.choice(extra), rng.choice((U32, U64, I32, STRING)), rng.choice((*NUMBERS, "x.gguf"))))
    elif kind == ARRAY:
        file.keys[at] = (name, ARRAY, _changed_array(rng, value))
    elif kind == STRING:
        file.keys[at] = (name, STRING, rng.choice(TEXTS))
    elif what == 7:
        file.keys[at] = (name, ARRAY, (kind, [value] * rng.randrange(4)))
    else:
        pool = FLOATS if kind in (F32, F64) else (*NUMBERS, *range(20))
        file.keys[at] = (name, kind, rng.choice(pool))


def _changed_array(rng: random.Random, value: tuple[Any, ...]) -> tuple[Any, ...]:
    inner, items = (value[0], list(value[1])) if isinstance(value, tuple) else (U32, [value])
    what = rng.randrange(7)
    if what == 0:
        return inner, items, rng.choice(NUMBERS)
    if what == 1:
        return inner, items[: rng.randrange(len(items) + 1)]
    if what == 2:
        return rng.choice((*range(13), 77)), [3 for _ in items] if inner == STRING else items
    if what == 3:
        return ARRAY, [(ARRAY, [(ARRAY, [(ARRAY, [])])])] * 2
    if items and inner == STRING:
        items[rng.randrange(len(items))] = rng.choice(TEXTS)
    elif items and inner in _CODES:
        items[rng.randrange(len(items))] = rng.choice(FLOATS if inner in (F32, F64) else NUMBERS)
    return inner, items * rng.choice((1, 1, 2))


def _change_tensor(rng: random.Random, file: Description) -> None:
    if not file.tensors:
        return
    tensor = rng.choice(file.tensors)
    what = rng.randrange(10)
    if what == 0:
        file.tensors.remove(tensor)
    elif what == 1 and tensor.ne:
        tensor.ne[rng.randrange(len(tensor.ne))] = rng.choice(NUMBERS)
    elif what == 2:
        tensor.ne = rng.choice((tensor.ne[::-1], [*tensor.ne, 1], tensor.ne[:-1] or [1], [1] * 5, [], [*tensor.ne, 0]))
    elif what == 3:
        tensor.type_id = rng.choice(_TYPE_IDS)
    elif what == 4:
        tensor.offset = rng.choice((0, 1, 16, 32, 64, 4096, *NUMBERS))
    elif what == 5:
        tensor.name = rng.choice((*TEXTS, rng.choice(file.tensors).name, tensor.name.replace("0", "9" * 5000)))
    elif what == 6:
        file.tensors.append(replace(tensor, ne=list(tensor.ne)))
    elif what in (7, 8):
        _change_weights(rng, tensor)
    else:
        rng.shuffle(file.tensors)


_PATTERNS = (b"\xff", b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x7c", b"\x7f", b"\x01\x00\x00\x00", b"\x00")


def _change_weights(rng: random.Random, tensor: Tensor) -> None:
    """All of one pattern (NaN, infinity, denormals, zeros), random bytes, or a few changed."""
    size, what = len(tensor.raw), rng.randrange(3)
    if what == 0:
        tensor.raw = (rng.choice(_PATTERNS) * size)[:size]
    elif what == 1:
        tensor.raw = (rng.randbytes(64) * (size // 64 + 1))[:size]
    else:
        changed = bytearray(tensor.raw)
        for _ in range(8):
            at = rng.randrange(max(1, size - 4))
            changed[at : at + 4] = (rng.choice(_PATTERNS) * 4)[:4]
        tensor.raw = bytes(changed[:size])


def _change_whole(rng: random.Random, file: Description) -> None:
    what = rng.randrange(6)
    if what == 0:
        file.counts = (rng.choice(NUMBERS), len(file.keys))
    elif what == 1:
        file.counts = (len(file.tensors), rng.choice(NUMBERS))
    elif what == 2:
        file.version = rng.choice((0, 1, 2, 3, 4, 3 << 24, 2**32 - 1))
    elif what == 3:
        file.magic = rng.choice((b"GGUF", b"PWRI", b"GGML", b"\x00" * 4))
    elif what == 4:
        rng.shuffle(file.keys)
    else:
        file.keys, file.tensors = file.keys[: rng.randrange(len(file.keys) + 1)], file.tensors


def bases() -> dict[str, Description]:
    """Tiny models of every kind that the runner reads, and an importance matrix."""
    found = {
        "sparse": _model("turbosparse", "Q8_0"), "sparse4": _model("turbosparse", "Q4_0"),
        "sparse_f16": _model("turbosparse", "F16"), "kquants": _model("turbosparse", "Q4_K", width=256, neurons=256),
        "experts": _model("turbosparse", "F32", experts=3), "powerinfer": _model("bamboo", "F16"),
        "llama": _model("llama", "Q8_0"), "mixtral": _model("llama", "F32", experts=3),
    }  # fmt: skip
    found["imatrix"] = _imatrix()
    return found


def _model(arch: str, type_name: str, *, width: int = 32, neurons: int = 64, experts: int = 0) -> Description:
    from tsconvert.model.files.gguf import ggml
    from tsconvert.quant.types.encoding import quantize

    rng, vocab, layers, heads, rank = np.random.default_rng(7), 48, 2, 2, 32 if width < 256 else 256
    transposed = arch != "llama"
    tensors: list[Tensor] = []

    def add(name: str, *shape: int, kind: str = type_name) -> None:
        values = rng.standard_normal(shape).astype(np.float32) * 0.2
        kind = kind if shape[-1] % ggml.TYPES[kind].weights == 0 else "F32"
        raw = quantize(values.reshape(-1, shape[-1]), kind).tobytes() if kind != "F32" else values.tobytes()
        tensors.append(Tensor(name, list(shape[::-1]), ggml.TYPES[kind].id, raw))

    stack = (experts,) if experts else ()
    suffix = "_exps" if experts else ""
    add("token_embd.weight", vocab, width)
    add("output.weight", vocab, width)
    add("output_norm.weight", width, kind="F32")
    for layer in range(layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            add(f"{block}{norm}.weight", width, kind="F32")
        for role in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}{role}.weight", width, width)
        if experts:
            add(f"{block}ffn_gate_inp.weight", experts, width, kind="F32")
        for role in ("ffn_gate", "ffn_up"):
            add(f"{block}{role}{suffix}.weight", *stack, neurons, width)
        down = f"ffn_down_t{suffix}" if transposed else f"ffn_down{suffix}"
        add(f"{block}{down}.weight", *stack, *((neurons, width) if transposed else (width, neurons)))
        if transposed:
            add(f"{block}fc1{suffix}.weight", *stack, rank, width)
            add(f"{block}fc2{suffix}.weight", *stack, neurons, rank)
    keys = [
        ("general.architecture", STRING, arch), ("general.name", STRING, "tiny"), (f"{arch}.context_length", U32, 64),
        (f"{arch}.embedding_length", U32, width), (f"{arch}.block_count", U32, layers),
        (f"{arch}.feed_forward_length", U32, neurons), (f"{arch}.attention.head_count", U32, heads),
        (f"{arch}.attention.head_count_kv", U32, heads), (f"{arch}.attention.key_length", U32, width // heads),
        (f"{arch}.rope.dimension_count", U32, width // heads), (f"{arch}.rope.freq_base", F32, 10000.0),
        (f"{arch}.rope.scaling.type", STRING, "yarn"), (f"{arch}.rope.scaling.factor", F32, 2.0),
        (f"{arch}.rope.scaling.original_context_length", U32, 32),
        (f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-5), *_tokenizer(arch, vocab),
    ]  # fmt: skip
    if experts:
        keys += [(f"{arch}.expert_count", U32, experts), (f"{arch}.expert_used_count", U32, 2)]
    if arch == "turbosparse":
        thresholds = [0.1] * (layers * max(1, experts))
        keys += [
            (f"{arch}.format_version", U32, 1), (f"{arch}.activation", STRING, "drelu"),
            (f"{arch}.predictor.threshold", ARRAY, (F32, thresholds)),
            (f"{arch}.activation_threshold", ARRAY, (F32, [0.01] * layers)),
        ]  # fmt: skip
    if arch == "bamboo":
        keys.append(("powerinfer.sparse_threshold", F32, 0.0))
    return Description(magic=b"PWRI" if arch == "bamboo" else b"GGUF", keys=keys, tensors=tensors)


def _tokenizer(arch: str, vocab: int) -> list[tuple[str, int, Any]]:
    prefix = "tokenizer.ggml."
    letters = [*"▁abcdefghijklmnopqrstuvwxyz"]
    pieces = ["<unk>", "<s>", "</s>", *letters, "th", "the", "▁the", "in", "▁in", "er", "an", "and"]
    pieces += [f"[PAD{i}]" for i in range(len(pieces), vocab)]
    keys: list[tuple[str, int, Any]] = [
        (prefix + "tokens", ARRAY, (STRING, pieces)),
        (prefix + "token_type", ARRAY, (I32, [2, 3, 3, *[1] * (vocab - 3)])),
        (prefix + "bos_token_id", U32, 1), (prefix + "eos_token_id", U32, 2), (prefix + "add_bos_token", BOOL, 1),
        ("tokenizer.chat_template", STRING, CHAT),
    ]  # fmt: skip
    if arch == "bamboo":
        merges = ["t h", "th e", "i n", "e r", "a n", "an d"]
        return [*keys, (prefix + "model", STRING, "gpt2"), (prefix + "merges", ARRAY, (STRING, merges))]
    scores = [-float(i) for i in range(vocab)]
    return [
        *keys, (prefix + "model", STRING, "llama"), (prefix + "scores", ARRAY, (F32, scores)),
        (prefix + "unknown_token_id", U32, 0),
    ]  # fmt: skip


def _imatrix() -> Description:
    tensors = []
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"):
        experts = 3 if "exps" in name else 1
        sums = np.linspace(0.1, 9, experts * 32, dtype=np.float32)
        tensors.append(Tensor(f"{name}.in_sum2", [32, experts], 0, sums.tobytes()))
        tensors.append(Tensor(f"{name}.counts", [1, experts], 0, np.full(experts, 5, np.float32).tobytes()))
    keys: list[tuple[str, int, Any]] = [
        ("general.type", STRING, "imatrix"), ("imatrix.datasets", ARRAY, (STRING, ["a.txt"])),
        ("imatrix.chunk_count", U32, 5), ("imatrix.chunk_size", U32, 512), ("tsconvert.imatrix.format_version", U32, 1),
    ]  # fmt: skip
    return Description(keys=keys, tensors=tensors)


def compile_all(path: Path) -> None:
    """Run every sound base, and quantize it: what is compiled on first use is compiled then."""
    from tsconvert.quant.quantize import QuantizeConfig, quantize
    from tsconvert.runner.model import load

    for name, base in bases().items():
        path.write_bytes(written(base))
        if name == "imatrix":
            continue
        with load(path, threads=1, context=48) as model:
            for mode in ("dense", model.mode):
                model.mode = mode
                model.logits([1, 5, 9])
                model.feed([2])
        out = path.with_name("q.gguf")
        out.unlink(missing_ok=True)
        if name != "powerinfer":
            quantize(QuantizeConfig(source=path, out=out, type_name="Q8_0", allow_requantize=True, threads=1))


def read_gguf(path: Path, rng: random.Random) -> None:
    """Everything that looks into a GGUF file: inspect, the runner with a prompt and a token, now and then the rest."""
    from tsconvert.evaluate.inspect.gguf import inspect_gguf
    from tsconvert.runner.model import load

    found = inspect_gguf(path, tensors=True)
    str(found)
    found.to_json()
    if "importance" in found.kind:
        return
    if rng.random() < 0.05:
        from tsconvert.quant.quantize import QuantizeConfig, quantize

        out = path.with_name("q.gguf")
        dry = rng.random() < 0.8
        out.unlink(missing_ok=True)
        quantize(QuantizeConfig(source=path, out=out, type_name="Q8_0", allow_requantize=True, dry_run=dry, threads=1))
    with load(path, threads=1, context=48) as model:
        tokens = [int(token) % model.spec.vocab for token in (1, 5, 9)]
        model.logits(tokens)
        model.feed(tokens[:1])
        if rng.random() < 0.2:
            model.mode = "dense"
            model.logits(tokens * 12)
        tokenizer = model.tokenizer
        tokenizer.decode(tokenizer.encode("the inn and the band"))
        if rng.random() < 0.01 and tokenizer.chat_template:
            tokenizer.chat([{"role": "user", "content": "hi"}])
