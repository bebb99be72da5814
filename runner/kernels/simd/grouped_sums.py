"""Weighted sums of many Q4_0 rows by whole numbers: four rows meet in each product of bytes.

A row's weight times the scale of one of its blocks is a share. The shares of a group of rows become whole numbers, for
each 32 columns, with their largest at 32512. Each is two signed bytes, 256 x high + low, that meet levels of 0 to 15,
four rows in a lane; a sum is exact until it becomes a float32, once a group. A share is rounded by at most 1/65024 of
the largest; llama.cpp rounds activations, before the same sum, by at most 1/254 of the largest of 32.

A step is four blocks, 128 columns. The slow twin: tests/runner/kernels/test_row_kernels.py.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from .block_groups import FORMATS, GROUP, RUN, RUNS
from .block_tiles import KINDS
from .emit import BYTES, FLOAT, FLOATS, HALF, I8, I16, I32, I64, INTS, LANES, Emit, emitted, permutes_bytes

ROWS = 4  # that meet in a lane
GROUP_ROWS = 16  # at most: with those that are asked for meanwhile they stay in the first cache
_FORM = FORMATS["Q4_0"]
_STEP = _FORM.blocks * _FORM.size_bytes  # bytes of 128 columns
_FOUR, _WORDS = ir.VectorType(FLOAT, ROWS), ir.VectorType(I16, 32)
_MOST, _LEAST = 127.0 * 256, 1e-30  # the largest share as a whole number; largest shares that count as zero
_ROUND = 1.5 * 2**23 + 128  # added to a float, leaves its whole part, 128 too large, in the lowest bits
_ROUND_BITS = 0x4B400000 + 128
_ASKED = 5  # lines, of coming rows, for 288 bytes that are added up

SPARE_BYTES = GROUP_ROWS // ROWS * 4 * LANES


def adds_groups(number: int) -> bool:
    """Whether a type, by its index in KINDS, has these sums on this machine."""
    return KINDS[number] == "Q4_0" and permutes_bytes()


@register_jitable
def rows_asked(rows: int) -> int:
    """How many rows to come a group of ``rows`` asks for, at most."""
    return rows + rows // 8 + 2


@emitted(types.void, *[types.int64] * 8)
def add_group(
    e: Emit, fours: Any, rows: Any, weights: Any, columns: Any, into: Any, ahead: Any, abreast: Any, spare: Any
) -> None:  # fmt: skip
    """into[i] += sum over rows of weight x row[i], of Q4_0 rows, for ``columns``, of which the last % 128 are left out.

    Args:
        fours: rows are four times as many, at most GROUP_ROWS.
        rows, weights: addresses of the rows' int64 addresses and float32 weights.
        ahead: address of the addresses of `rows_asked` rows to come.
        abreast: 1 if the bytes are asked for that are added up of the rows before them, 0 if row behind row is.
        spare: SPARE_BYTES bytes.
    """
    b, steps, zero = e.b, e.b.udiv(columns, ir.Constant(I64, GROUP)), e.all(INTS, 0)
    asking, largest = _Asking(e, ahead, steps, abreast), e.variable(zero)
    with e.loop(fours) as four:
        _write_shares(e, four, rows, weights, ir.Constant(I64, 0), spare, largest)
    with e.loop(steps) as index:
        scale, inverse = _scale(e, b.load(largest))
        b.store(zero, largest)
        following = b.add(index, ir.Constant(I64, 1))
        following = b.select(b.icmp_signed("<", following, steps), following, index)  # no byte behind the row
        offset, next_offset = (b.mul(each, ir.Constant(I64, _STEP)) for each in (index, following))
        total = e.variable(zero)
        # of a quarter of each block's columns: by low nibbles and by whole bytes, by lower and by higher digits
        sums = [[e.variable(zero) for _ in range(4)] for _ in range(4)]
        with e.loop(fours) as four:
            shares = e.load(FLOATS, _shares_at(e, spare, four))
            bits = b.bitcast(e.fma(shares, inverse, e.all(FLOATS, _ROUND)), INTS)
            b.store(b.add(b.load(total), bits), total)
            _write_shares(e, four, rows, weights, next_offset, spare, largest)
            digits = _digits(e, bits)
            for quarter, whole in enumerate(_interleaved(e, _four_rows(e, rows, four, offset))):
                low = b.and_(whole, e.all(BYTES, 15))
                for place, level, digit in zip(sums[quarter], (low, low, whole, whole), digits * 2, strict=True):
                    b.store(e.dot4(b.load(place), level, digit), place)
            asking.some(four, offset)
        extra = e.splat(b.mul(b.trunc(fours, I32), ir.Constant(I32, _ROUND_BITS)))
        whole = _over_rows(e, b.sub(b.load(total), extra), b.add)
        target = b.add(into, b.mul(index, ir.Constant(I64, 4 * GROUP)))
        _add_columns(e, [[b.load(place) for place in quarter] for quarter in sums], scale, whole, target)


def _four_rows(e: Emit, rows: Any, four: Any, offset: Any) -> list[Any]:
    """Addresses of a step's bytes in the rows of a four."""
    at = e.b.add(rows, e.b.mul(four, ir.Constant(I64, 8 * ROWS)))
    return [e.b.add(e.load(I64, at, 8 * r), offset) for r in range(ROWS)]


def _shares_at(e: Emit, spare: Any, four: Any) -> Any:
    return e.b.add(spare, e.b.mul(four, ir.Constant(I64, 4 * LANES)))


def _write_shares(e: Emit, four: Any, rows: Any, weights: Any, offset: Any, spare: Any, largest: Any) -> None:
    """Write a step's shares of a four; lane 4k + r belongs to block k and row r."""
    b = e.b
    words = [e.load(_WORDS, address) for address in _four_rows(e, rows, four, offset)]
    two = [_scales_of_two(e, *words[r : r + 2]) for r in (0, 2)]
    halves = e.pick(two[0], [lane + (LANES if lane % ROWS > 1 else 0) for lane in range(LANES)], two[1])
    weight = e.load(_FOUR, b.add(weights, b.mul(four, ir.Constant(I64, 4 * ROWS))))
    weight = e.pick(weight, [lane % ROWS for lane in range(LANES)])
    shares = b.fmul(b.fpext(b.bitcast(halves, ir.VectorType(HALF, LANES)), FLOATS), weight)
    e.store(shares, _shares_at(e, spare, four))
    b.store(_larger(e, b.load(largest), b.and_(b.bitcast(shares, INTS), e.all(INTS, 2**31 - 1))), largest)


def _scales_of_two(e: Emit, one: Any, other: Any) -> Any:
    """The float16, as words, of two rows' blocks: rows alternate."""
    word = _FORM.size_bytes // 2
    return e.pick(one, [lane // ROWS * word + (_WORDS.count if lane % 2 else 0) for lane in range(LANES)], other)


def _larger(e: Emit, one: Any, other: Any) -> Any:
    """Of magnitudes, as the bits of floats; NaN is the largest."""
    return e.b.select(e.b.icmp_signed(">", one, other), one, other)


def _over_rows(e: Emit, vector: Any, join: Any) -> Any:
    """All lanes of a block become what its four are joined."""
    for distance in (1, 2):
        vector = join(vector, e.pick(vector, [lane ^ distance for lane in range(LANES)]))
    return vector


def _scale(e: Emit, largest: Any) -> tuple[Any, Any]:
    """What a whole share is worth, of each block, and what a share is multiplied with to become whole."""
    most = e.b.bitcast(_over_rows(e, largest, lambda one, other: _larger(e, one, other)), FLOATS)
    empty = e.b.fcmp_ordered("<", most, e.all(FLOATS, _LEAST))
    inverse = e.b.select(empty, e.all(FLOATS, 0.0), e.b.fdiv(e.all(FLOATS, _MOST), most))
    return e.b.fmul(most, e.all(FLOATS, 1 / _MOST)), inverse


def _digits(e: Emit, bits: Any) -> list[Any]:
    """The lower and the higher digits: four rows' in each lane, in all four lanes of a block."""
    places = [16 * block + 4 * row for block in range(RUNS) for _ in range(4) for row in range(ROWS)]
    digits = [e.pick(e.b.bitcast(bits, BYTES), [place + digit for place in places]) for digit in (0, 1)]
    return [e.b.xor(digits[0], e.all(BYTES, -128)), digits[1]]


def _interleaved(e: Emit, addresses: Sequence[Any]) -> list[Any]:
    """A step's bytes, a vector a quarter: its lane 4k + i has byte i of that of block k, of each of four rows."""
    rows, words = [_block_bytes(e, address) for address in addresses], ir.VectorType(I16, 32)
    found = []
    for half in (0, 1):
        two = [e.b.bitcast(_unpacked(e, rows[r], rows[r + 1], half), words) for r in (0, 2)]
        found += [e.b.bitcast(_unpacked(e, two[0], two[1], part), BYTES) for part in (0, 1)]
    return found


def _block_bytes(e: Emit, address: Any) -> Any:
    """The bytes of four blocks, 16 in a row each. A load of what the first lacks is cheaper than one of 64 bytes."""
    end = RUNS * _FORM.size_bytes
    last = e.pick(e.load(ir.VectorType(I8, 16), address, end - 16), [i % 16 for i in range(64)])
    places = [k * _FORM.size_bytes + 2 + i for k in range(RUNS) for i in range(16)]
    return e.pick(e.load(BYTES, address), [place if place < 64 else 64 + place - (end - 16) for place in places], last)


def _unpacked(e: Emit, one: Any, other: Any, half: int) -> Any:
    """Of two vectors, elements of one half of each 16 bytes, alternately."""
    count = one.type.count
    size = count // 8
    lanes = [2 * size * part + size * half + i for part in range(4) for i in range(size)]
    return e.pick(one, [lane + which * count for lane in lanes for which in (0, 1)], other)


def _add_columns(e: Emit, sums: Sequence[Sequence[Any]], scale: Any, total: Any, into: Any) -> None:
    """Add a step's 128 columns to the floats; every weight was 8 too large."""
    b, eight = e.b, e.all(INTS, 8)
    lows = [b.add(quarter[0], b.shl(quarter[1], eight)) for quarter in sums]
    wholes = [b.add(quarter[2], b.shl(quarter[3], eight)) for quarter in sums]
    excess = b.mul(total, e.all(INTS, -8))
    highs = [b.add(b.sub(whole, low), b.mul(excess, e.all(INTS, 16))) for low, whole in zip(lows, wholes, strict=True)]
    lows = [b.add(low, excess) for low in lows]
    for half, (numbers, factor) in enumerate(((lows, scale), (highs, b.fmul(scale, e.all(FLOATS, 1 / 16))))):
        floats = [b.fmul(b.sitofp(each, FLOATS), factor) for each in numbers]
        for block, columns in enumerate(_turned(e, floats)):
            at = 4 * (RUN * block + LANES * half)
            e.store(b.fadd(e.load(FLOATS, into, at), columns), into, at)


def _turned(e: Emit, four: Sequence[Any]) -> list[Any]:
    """Four vectors of four parts each: the first parts of all, the second parts, and so on."""

    def parts(one: Any, other: Any, numbers: Sequence[int]) -> Any:
        return e.pick(one, [4 * number + i for number in numbers for i in range(4)], other)

    halves = [(parts(four[0], four[1], two), parts(four[2], four[3], two)) for two in ((0, 1, 4, 5), (2, 3, 6, 7))]
    return [parts(one, other, two) for one, other in halves for two in ((0, 2, 4, 6), (1, 3, 5, 7))]


class _Asking:
    """Asks for rows to come: _ASKED lines at a time, row behind row, or the bytes that are added up of those before."""

    def __init__(self, e: Emit, ahead: Any, steps: Any, abreast: Any) -> None:
        self.e, self.ahead, b = e, ahead, e.b
        self.abreast = b.icmp_signed("!=", abreast, ir.Constant(I64, 0))
        lines = b.udiv(b.add(b.mul(steps, ir.Constant(I64, _STEP)), ir.Constant(I64, 63)), ir.Constant(I64, 64))
        self.turns = b.udiv(b.add(lines, ir.Constant(I64, _ASKED - 1)), ir.Constant(I64, _ASKED))
        self.row, self.offset, self.left = e.variable(ahead), e.variable(ir.Constant(I64, 0)), e.variable(self.turns)

    def some(self, four: Any, offset: Any) -> None:
        """Ask for the next lines, or for a step's bytes of a four."""
        e, b = self.e, self.e.b
        with b.if_else(self.abreast) as (abreast, in_turn):
            with abreast:
                for address in _four_rows(e, self.ahead, four, offset):
                    e.prefetch(address)
                    e.prefetch(address, _STEP - 1)
            with in_turn:
                self._next_lines()

    def _next_lines(self) -> None:
        e, b = self.e, self.e.b
        row, offset, left = b.load(self.row), b.load(self.offset), b.sub(b.load(self.left), ir.Constant(I64, 1))
        start = b.add(e.load(I64, row), offset)
        for line in range(_ASKED):
            e.prefetch(start, 64 * line)
        done = b.icmp_signed("==", left, ir.Constant(I64, 0))
        b.store(b.select(done, ir.Constant(I64, 0), b.add(offset, ir.Constant(I64, 64 * _ASKED))), self.offset)
        b.store(b.select(done, b.add(row, ir.Constant(I64, 8)), row), self.row)
        b.store(b.select(done, self.turns, left), self.left)
