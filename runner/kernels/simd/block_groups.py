"""Block types as groups of 128 bytes with scales: what every own kernel of the runner computes with.

A group is four runs a, b, c, d of 32 neighbouring weights. Its bytes are two vectors: ``low`` has the first 16 of each
run, ``high`` the second 16, so that lanes 4k to 4k+3 of a four-byte product belong to run k, and one vector of scales
serves both. Inputs are stored the same way (rounded_inputs.py). Block layouts: ggml-common.h, ggml-quants.c
(dequantize_row_*).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from .emit import BYTES, FLOAT, FLOATS, HALF, I8, I16, I32, I64, INTS, Emit

GROUP = 128
RUN = 32
RUNS = 4
_SIXTEEN, _TWO_HALVES = ir.VectorType(I8, 16), ir.VectorType(HALF, 2)
_FOUR_FLOATS, _FOUR_INTS = ir.VectorType(FLOAT, 4), ir.VectorType(I32, 4)
_SPREAD = [lane // 4 for lane in range(16)]
_LINE, _WORDS = 64, ir.VectorType(I16, 32)


@dataclass(frozen=True)
class Group:
    """128 weights: (byte - offset) x scale - minimum, of unsigned bytes; of signed ones byte x scale."""

    low: Any
    high: Any
    scale_low: Any
    """16 floats, a run's in its four lanes."""
    scale_high: Any
    """None where it is ``scale_low``."""
    offset: int | None
    """0, or 8 times a power of two; None where bytes are signed, and then there is one scale."""
    minimum: Any = None
    """As the scales; None where there is none."""


@dataclass(frozen=True)
class Format:
    """How one block type becomes groups."""

    weights: int
    """In a block: 32, or 256 (two groups)."""
    size_bytes: int
    expand: Callable[[Emit, Sequence[Any]], list[Group]]
    """From the addresses of four blocks of 32, or of one of 256."""

    @property
    def blocks(self) -> int:
        """Addresses that ``expand`` takes."""
        return max(1, GROUP // self.weights)

    @property
    def step_weights(self) -> int:
        """Weights that one ``expand`` covers."""
        return max(GROUP, self.weights)


def spread(e: Emit, four: Any) -> Any:
    """Four floats in the lanes of their runs."""
    return e.pick(four, _SPREAD)


class Neighbours(list[Any]):
    """Addresses of blocks that lie one behind the other; all is picked from a few loads, the last as short as can be.

    A load of 64 bytes touches two lines: with six for a step of Q8_0 a core of Zen 5 reads 22 GB/s, with three 30.
    """

    def __init__(self, addresses: Sequence[Any], size_bytes: int) -> None:
        super().__init__(addresses)
        self.size_bytes, end = size_bytes, RUNS * size_bytes
        last = next(size for size in (16, 32, _LINE) if size >= end % _LINE)
        self._loads = [(start, _LINE) for start in range(0, end - end % _LINE, _LINE)] + [(end - last, last)]
        self._loaded: dict[int, Any] = {}

    def _load(self, e: Emit, number: int, kind: Any) -> Any:
        if number not in self._loaded:
            start, size = self._loads[number]
            loaded = e.load(ir.VectorType(I8, size), self[0], start)
            self._loaded[number] = e.pick(loaded, [*range(size)] * (_LINE // size))
        return e.b.bitcast(self._loaded[number], kind)

    def _pick(self, e: Emit, places: Sequence[int], size: int, kind: Any) -> Any:
        """Elements of ``size`` bytes at places of the four blocks, each within one load."""
        homes = [next(i for i, (start, held) in enumerate(self._loads) if place < start + held) for place in places]
        lanes = [(place - self._loads[home][0]) // size for place, home in zip(places, homes, strict=True)]
        first, *others = sorted(set(homes))
        order = [lane if home == first else 0 for lane, home in zip(lanes, homes, strict=True)]
        found = self._load(e, first, kind)
        for number in others:
            taken = zip(order, lanes, homes, strict=True)
            order = [_LINE // size + lane if home == number else before for before, lane, home in taken]
            found, order = e.pick(found, order, self._load(e, number, kind)), list(range(len(places)))
        return found if others else e.pick(found, order)

    def words(self, e: Emit, times: int, offset: int = 0) -> Any:
        """Two bytes at an offset, 0 or 2, of each of four blocks, so many times each, as float16."""
        picked = self._pick(e, [k * self.size_bytes + offset for k in range(RUNS) for _ in range(times)], 2, _WORDS)
        return e.b.bitcast(picked, ir.VectorType(HALF, RUNS * times))

    def sixteens(self, e: Emit, offset: int) -> Any:
        """The 16 bytes from an offset on, of each of four blocks."""
        return self._pick(e, [k * self.size_bytes + offset + i for k in range(RUNS) for i in range(16)], 1, BYTES)


def _scales(e: Emit, addresses: Sequence[Any], offset: int = 0) -> Any:
    """The float16 at an offset, 0 or 2, of each of four blocks, spread."""
    if isinstance(addresses, Neighbours):
        return e.b.fpext(addresses.words(e, 4, offset), FLOATS)
    halves = ir.Constant(ir.VectorType(HALF, 4), ir.Undefined)
    for k, address in enumerate(addresses):
        halves = e.b.insert_element(halves, e.load(HALF, address, offset), ir.Constant(I32, k))
    return spread(e, e.b.fpext(halves, _FOUR_FLOATS))


def _sixteens(e: Emit, addresses: Sequence[Any], offset: int) -> Any:
    if isinstance(addresses, Neighbours) and e.permutes_bytes:
        return addresses.sixteens(e, offset)
    return e.join([e.load(_SIXTEEN, address, offset) for address in addresses])


def _nibbles(e: Emit, both: Any) -> tuple[Any, Any]:
    fifteen = e.all(BYTES, 15)
    return e.b.and_(both, fifteen), e.b.and_(e.b.lshr(both, e.all(BYTES, 4)), fifteen)


def _q4_0(e: Emit, blocks: Sequence[Any]) -> list[Group]:
    return [Group(*_nibbles(e, _sixteens(e, blocks, 2)), _scales(e, blocks), None, 8)]


def _q4_1(e: Emit, blocks: Sequence[Any]) -> list[Group]:
    return [Group(*_nibbles(e, _sixteens(e, blocks, 4)), _scales(e, blocks), None, 0, _minima(e, blocks))]


def _minima(e: Emit, blocks: Sequence[Any]) -> Any:
    """Of types that add a float16 to what scale and byte give."""
    return e.b.fneg(_scales(e, blocks, 2))


def _q5_0(e: Emit, blocks: Sequence[Any]) -> list[Group]:
    return [Group(*_fives(e, blocks, 2), _scales(e, blocks), None, 16)]


def _q5_1(e: Emit, blocks: Sequence[Any]) -> list[Group]:
    return [Group(*_fives(e, blocks, 4), _scales(e, blocks), None, 0, _minima(e, blocks))]


def _fives(e: Emit, blocks: Sequence[Any], start: int) -> tuple[Any, Any]:
    """Nibbles with their fifth bits, of a uint32 before them: of a block's first 16 weights, then of the others."""
    low, high = (
        e.b.or_(nibbles, e.b.select(_bits(e, blocks, offset), e.all(BYTES, 16), e.all(BYTES, 0)))
        for nibbles, offset in zip(_nibbles(e, _sixteens(e, blocks, start + 4)), (start, start + 2), strict=True)
    )
    return low, high


def _bits(e: Emit, blocks: Sequence[Any], offset: int) -> Any:
    """16 bits of each of four blocks."""
    bits = ir.Constant(I64, 0)
    for k, block in enumerate(blocks):
        bits = e.b.or_(bits, e.b.shl(e.b.zext(e.load(I16, block, offset), I64), ir.Constant(I64, 16 * k)))
    return e.b.bitcast(bits, ir.VectorType(ir.IntType(1), 64))


def _q8_0(e: Emit, blocks: Sequence[Any]) -> list[Group]:
    return [Group(_sixteens(e, blocks, 2), _sixteens(e, blocks, 18), _scales(e, blocks), None, None)]


def _q4_k(e: Emit, blocks: Sequence[Any]) -> list[Group]:
    """Two float16, twelve bytes of 6-bit scales and minima, 128 bytes: per 64 weights 32 low, 32 high nibbles."""
    (block,) = blocks
    words, factors = e.load(_FOUR_INTS, block), e.b.fpext(e.load(_TWO_HALVES, block), ir.VectorType(FLOAT, 2))
    shifts, masks = ir.Constant(_FOUR_INTS, [0, 0, 0, 4]), [0x3F3F3F3F, 0x0F0F0F0F] * 2
    sixes = e.b.and_(e.b.lshr(e.pick(words, [1, 3, 2, 3]), shifts), ir.Constant(_FOUR_INTS, masks))
    tops = e.b.lshr(e.pick(words, [1, 1, 2, 2]), e.all(_FOUR_INTS, 2))
    sixes = e.b.or_(sixes, e.b.and_(tops, ir.Constant(_FOUR_INTS, [0, 0x30303030] * 2)))
    values = e.b.sitofp(e.b.zext(e.b.bitcast(sixes, _SIXTEEN), INTS), FLOATS)  # eight scales, eight minima
    values = e.b.fmul(values, e.pick(factors, [0] * 8 + [1] * 8))
    return [_q4_k_group(e, e.load(BYTES, block, 16 + 64 * part), values, 4 * part) for part in (0, 1)]


def _halves(e: Emit, one: Any, other: Any, starts: Sequence[int]) -> list[Any]:
    """The first and the second 16 bytes of four runs, which begin so in two vectors one behind the other."""
    return [e.pick(one, [start + half + i for start in starts for i in range(16)], other) for half in (0, 16)]


def _q4_k_group(e: Emit, quants: Any, values: Any, first: int) -> Group:
    low, high = _halves(e, *_nibbles(e, quants), (0, 64, 32, 96))
    scales, minima = (e.pick(values, [start + lane for lane in _SPREAD]) for start in (first, first + 8))
    return Group(low, high, scales, None, 0, minima)


def _q6_k(e: Emit, blocks: Sequence[Any]) -> list[Group]:
    """128 bytes of low nibbles, 64 of upper pairs of bits, a signed byte of scale per 16 weights, a float16."""
    (block,) = blocks
    scale = e.splat(e.b.fpext(e.load(HALF, block, 208), FLOAT))
    scales = e.b.fmul(e.b.sitofp(e.b.sext(e.load(_SIXTEEN, block, 192), INTS), FLOATS), scale)
    return [_q6_k_group(e, block, part, scales) for part in (0, 1)]


def _q6_k_group(e: Emit, block: Any, part: int, scales: Any) -> Group:
    pairs = e.b.bitcast(e.pick(e.load(ir.VectorType(I8, 32), block, 128 + 32 * part), [*range(32)] * 2), _WORDS)
    up, down = (ir.Constant(_WORDS, [one] * 16 + [other] * 16) for one, other in ((4, 2), (0, 2)))
    tops = [e.b.bitcast(words, BYTES) for words in (e.b.shl(pairs, up), e.b.lshr(pairs, down))]
    nibbles = _nibbles(e, e.load(BYTES, block, 64 * part))
    one, other = (e.b.or_(each, e.b.and_(top, e.all(BYTES, 48))) for each, top in zip(nibbles, tops, strict=True))
    low, high = _halves(e, one, other, (0, 32, 64, 96))
    low_scales, high_scales = (e.pick(scales, [8 * part + 2 * lane + half for lane in _SPREAD]) for half in (0, 1))
    return Group(low, high, low_scales, high_scales, 32)


FORMATS = {
    "Q4_0": Format(32, 2 + 16, _q4_0),
    "Q4_1": Format(32, 2 + 2 + 16, _q4_1),
    "Q5_0": Format(32, 2 + 4 + 16, _q5_0),
    "Q5_1": Format(32, 2 + 2 + 4 + 16, _q5_1),
    "Q8_0": Format(32, 2 + 32, _q8_0),
    "Q4_K": Format(256, 2 + 2 + 12 + 128, _q4_k),
    "Q6_K": Format(256, 128 + 64 + 16 + 2, _q6_k),
}
WITH_MINIMA = ("Q4_1", "Q5_1")  # of blocks of 32
