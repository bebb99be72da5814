"""What is done to a real file: bytes changed, numbers replaced by those that programs trip over, JSON rebuilt."""

import json
import random
import struct
from typing import Any

NUMBERS = (
    0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 127, 128, 255, 256, 4095, 4096, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
    2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
TEXTS = (
    "",
    "a",
    "\x00",
    "../x",
    "/etc/passwd",
    "\x1b[2J",
    "\ud800",
    "é" * 40,
    "x" * 5000,
    "blk.0",
    "F32",
    "nan",
    "1e999",
)
FLOATS = (0.0, -0.0, 1e-45, 1e-38, 1.0, -1.0, 3e38, 1e300, float("inf"), float("-inf"), float("nan"))


def mutate_bytes(rng: random.Random, data: bytes, reach: int | None = None) -> bytes:
    """One to eight changes, four in five of them within the first ``reach`` bytes."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 8))):
        end = min(reach, len(found)) if reach and rng.random() < 0.8 else len(found)
        at, kind = rng.randrange(max(1, end)), rng.randrange(9)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1 and found:
            found[min(at, len(found) - 1)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            found[at : at + size] = (rng.choice(NUMBERS) & (256**size - 1)).to_bytes(size, "little")
        elif kind == 3:
            found[at : at + 4] = struct.pack("<f", min(max(rng.choice(FLOATS), -3e38), 3e38))
        elif kind == 4:
            del found[at : at + rng.choice((1, 4, 8, 64, 1024))]
        elif kind == 5:
            found[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 8, 64))))
        elif kind == 6 and rng.random() < 0.3:
            del found[rng.randrange(len(found) + 1) :]
        elif kind == 7:
            other = rng.randrange(max(1, end))
            size = rng.choice((4, 8, 16, 64))
            found[at : at + size] = found[other : other + size]
        else:
            found[at : at + 8] = rng.choice((b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7))
    return bytes(found)


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any kind."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(NUMBERS) * rng.choice((1, 1, -1))
    if kind == 3:
        return rng.choice(FLOATS)
    if kind == 4:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice((10**30, -(10**30), 10**300, 10**400))
    if kind == 6:
        return rng.random()
    if kind == 7:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {rng.choice(TEXTS): odd_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    return [[]]


def mutate_json(rng: random.Random, value: Any, changes: int | None = None) -> bytes:
    """The JSON text of ``value`` with a few values, names or bytes changed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3)) if changes is None else changes):
        value = _changed(rng, value)
    text = json.dumps(value).encode("ascii")
    if rng.random() < 0.02:
        text = text.replace(b"0", b"9" * 5000, 1)
    if rng.random() < 0.02:
        text = text.replace(b":", b":" + b"[" * rng.choice((100, 100_000)), 1)
    return mutate_bytes(rng, text) if rng.random() < 0.15 else text


def _changed(rng: random.Random, value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.9):
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            del value[name]
        elif kind < 0.15:
            value[rng.choice(TEXTS)] = value.pop(name)
        elif kind < 0.2:
            value[rng.choice(TEXTS)] = odd_value(rng)
        else:
            value[name] = _changed(rng, value[name], depth + 1)
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.1:
            del value[at]
        elif kind < 0.2:
            value.insert(at, odd_value(rng))
        else:
            value[at] = _changed(rng, value[at], depth + 1)
        return value
    if isinstance(value, str) and value and rng.random() < 0.3:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(TEXTS) + value[at + 1 :]
    return odd_value(rng)
