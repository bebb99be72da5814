"""A few rows of block weights times a few inputs, in registers: the innermost loop of every own product.

The arithmetic, per run of 32 weights: input and weights meet as whole numbers, exactly; the sum times both scales is
added in float32, 16 sums a pair of row and input, which are added up at the end. The same row and input give the same
bits in every tile, so decoding and prompts agree.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .block_groups import FORMATS, GROUP, RUNS, Format, Group, Neighbours, spread
from .emit import BYTES, FLOAT, FLOATS, I16, I64, INTS, Emit, instruction_set

KINDS = tuple(FORMATS)
ABREAST = 8  # listed rows that meet an input at once, while the same columns of the next are asked for
FACTOR_BYTES = 8 * 4  # of a group: four scales of the input, four sums
LANE_BYTES = 16 * 2  # of a group: -8 times the sum of the bytes that meet in a lane
_FOUR, _LANES = ir.VectorType(FLOAT, RUNS), ir.VectorType(I16, 16)


def input_bytes(columns: int) -> int:
    """Bytes of an input of ``columns`` values in the form that tiles take (rounded_inputs.py)."""
    groups = -(-columns // GROUP)
    return -(-groups * (GROUP + FACTOR_BYTES + LANE_BYTES) // 64) * 64


def blocks_at(e: Emit, form: Format, row: Any, offset: Any, left: Any = None) -> list[Any]:
    """Addresses of a step's blocks. Of a step with only ``left`` blocks, the first stands in for those that lack."""
    first = e.b.add(row, offset)
    found = [first]
    for k in range(1, form.blocks):
        address = e.b.add(first, ir.Constant(I64, k * form.size_bytes))
        if left is not None:
            address = e.b.select(e.b.icmp_unsigned("<", ir.Constant(I64, k), left), address, first)
        found.append(address)
    return Neighbours(found, form.size_bytes) if left is None and len(found) == RUNS else found


class _Tile:
    """Emits one tile: sums are kept in variables that LLVM turns into registers."""

    def __init__(self, builder: Any, isa: str, kind: str, rows: Sequence[Any], inputs: Sequence[Any]) -> None:
        self.e, self.format, self.rows, self.inputs = Emit(builder, isa), FORMATS[kind], rows, inputs
        zero = self.e.all(FLOATS, 0.0)
        self.sums = [[self.e.variable(zero) for _ in inputs] for _ in rows]

    def run(self, columns: Any, ahead: Sequence[Any], abreast: bool = False) -> list[list[Any]]:
        """The products, one list a row; lines of the rows ``ahead`` are asked for at the same pace, or ``abreast``."""
        b, step = self.e.b, self.format.step_weights
        groups = b.udiv(b.add(columns, ir.Constant(I64, GROUP - 1)), ir.Constant(I64, GROUP))
        factors = b.mul(groups, ir.Constant(I64, GROUP))
        lanes = b.mul(groups, ir.Constant(I64, GROUP + FACTOR_BYTES))
        parts = (factors, lanes)
        steps = b.udiv(columns, ir.Constant(I64, step))
        size = self.format.blocks * self.format.size_bytes
        with self.e.loop(steps) as index:
            offset = b.mul(index, ir.Constant(I64, size))
            ask_step(self.e, ahead, index, size, abreast)
            self._step([blocks_at(self.e, self.format, row, offset) for row in self.rows], index, parts)
        ask_rest(self.e, ahead, steps, size, row_bytes(self.e, self.format, columns), abreast)
        if self.format.weights < GROUP:
            left = b.udiv(b.urem(columns, ir.Constant(I64, step)), ir.Constant(I64, self.format.weights))
            with b.if_then(b.icmp_unsigned("!=", left, ir.Constant(I64, 0))):
                offset = b.mul(steps, ir.Constant(I64, self.format.blocks * self.format.size_bytes))
                self._step([blocks_at(self.e, self.format, row, offset, left) for row in self.rows], steps, parts)
        return [[self.e.total(b.load(place)) for place in row] for row in self.sums]

    def _step(self, blocks: Sequence[Sequence[Any]], index: Any, parts: Sequence[Any]) -> None:
        """One step of every row: expanded once, then multiplied with each input."""
        b, expanded = self.e.b, [self.format.expand(self.e, addresses) for addresses in blocks]
        for number in range(len(expanded[0])):
            at = b.add(
                b.mul(index, ir.Constant(I64, len(expanded[0]))), ir.Constant(I64, number)
            )  # this group's number in the row
            groups = [row[number] for row in expanded]
            biases = [_bias(self.e, group) for group in groups]
            for t, x in enumerate(self.inputs):
                places = [b.add(x, b.mul(at, ir.Constant(I64, GROUP)))]
                for part, size in zip(parts, (FACTOR_BYTES, LANE_BYTES), strict=True):
                    places.append(b.add(b.add(x, part), b.mul(at, ir.Constant(I64, size))))
                self._meet(groups, biases, t, *places)

    def _meet(
        self, groups: Sequence[Group], biases: Sequence[Any], t: int, quants: Any, factor: Any, lanes: Any
    ) -> None:
        e, b, first = self.e, self.e.b, groups[0]
        low, high = e.load(BYTES, quants), e.load(BYTES, quants, GROUP // 2)
        scale = spread(e, e.load(_FOUR, factor))
        minus_sum = spread(e, e.load(_FOUR, factor, 16)) if first.minimum is not None else None
        start_low = start_high = None
        if first.offset is None:
            low, high = (b.xor(part, e.all(BYTES, -128)) for part in (low, high))
        elif first.scale_high is None:
            start_low = _start(e, first.offset, lanes)
        else:
            start_low, start_high = (_start_of_half(e, first.offset, part) for part in (low, high))
        for row, group, bias in zip(self.sums, groups, biases, strict=True):
            total, scales = b.load(row[t]), b.fmul(group.scale_low, scale)
            if group.offset is None:
                whole = e.dot4(e.dot4(bias, low, group.low), high, group.high)
            elif group.scale_high is None:
                whole = e.dot4(e.dot4(start_low, group.low, low), group.high, high)
            else:
                total = e.fma(b.sitofp(e.dot4(start_low, group.low, low), FLOATS), scales, total)
                whole, scales = e.dot4(start_high, group.high, high), b.fmul(group.scale_high, scale)
            total = e.fma(b.sitofp(whole, FLOATS), scales, total)
            if minus_sum is not None:
                total = e.fma(group.minimum, minus_sum, total)
            b.store(total, row[t])


def _addresses(e: Emit, at: Any, count: int) -> list[Any]:
    return [e.load(I64, at, 8 * i) for i in range(count)]


def _start(e: Emit, offset: int, lanes: Any) -> Any:
    """What a lane's sum begins with: minus the weights' offset times the sum of the input's bytes."""
    if offset == 0:
        return e.all(INTS, 0)
    eights = e.b.sext(e.load(_LANES, lanes), INTS)
    return e.b.shl(eights, e.all(INTS, (offset // 8).bit_length() - 1)) if offset > 8 else eights


def _start_of_half(e: Emit, offset: int, part: Any) -> Any:
    """The same for one half of the input's bytes."""
    zero = e.all(INTS, 0)
    return e.b.sub(zero, e.dot4(zero, e.all(BYTES, offset), part))


def _bias(e: Emit, group: Group) -> Any:
    """Signed weights meet inputs made unsigned, 128 too large: minus 128 times the weights' sum makes good for it."""
    if group.offset is not None:
        return None
    zero, shift = e.all(INTS, 0), e.all(BYTES, -128)
    return e.b.sub(zero, e.dot4(e.dot4(zero, shift, group.low), shift, group.high))


def row_bytes(e: Emit, form: Format, columns: Any) -> Any:
    """Bytes of a row."""
    return e.b.mul(e.b.udiv(columns, ir.Constant(I64, form.weights)), ir.Constant(I64, form.size_bytes))


def _asked(step_bytes: int, abreast: bool) -> int:
    """Bytes of a coming row that a step asks for: its own, or as many whole lines as they fill."""
    return step_bytes if abreast else step_bytes // 64 * 64


def ask_step(e: Emit, ahead: Sequence[Any], index: Any, step_bytes: int, abreast: bool) -> None:
    """Ask for a step's share of each coming row: ``abreast`` the bytes that it reads of its own, else whole lines."""
    size = _asked(step_bytes, abreast)
    for address in ahead:
        at = e.b.add(address, e.b.mul(index, ir.Constant(I64, size)))
        for byte in (*range(0, size - 1, 64), *[size - 1] * abreast):
            e.prefetch(at, byte)


def ask_rest(e: Emit, ahead: Sequence[Any], steps: Any, step_bytes: int, size: Any, abreast: bool) -> None:
    """Ask for what ``steps`` steps leave of rows of ``size`` bytes, begun within a line or not."""
    asked = e.b.mul(steps, ir.Constant(I64, _asked(step_bytes, abreast)))
    left = e.b.add(e.b.sub(size, asked), ir.Constant(I64, 63))
    with e.loop(e.b.udiv(left, ir.Constant(I64, 64))) as line:
        at = e.b.add(asked, e.b.mul(line, ir.Constant(I64, 64)))
        for address in ahead:
            e.prefetch(e.b.add(address, at))
    for address in ahead:
        e.prefetch(e.b.add(address, size), -1)


def _make(isa: str) -> Any:
    @intrinsic(prefer_literal=True)
    def tile(
        typingctx: Any, kind: Any, rows: Any, inputs: Any, prefetch: Any,  # noqa: ARG001
        rows_at: Any, inputs_at: Any, columns: Any, ahead_at: Any, out: Any,  # noqa: ARG001
    ) -> Any:  # fmt: skip
        """Products of rows and inputs whose int64 addresses stand at ``rows_at`` and ``inputs_at``, to float32 ``out``.

        ``kind`` (an index of KINDS), the number of rows and of inputs and whether to ask for the rows whose addresses
        stand at ``ahead_at`` are constants: 0 no, 1 each at its own pace, 2 the bytes that a step reads of its own.
        Results lie input by input, a row behind the other.
        """
        constants = [each.literal_value for each in (kind, rows, inputs, prefetch)]

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
            number, row_count, input_count, foresee = constants
            e = Emit(builder, isa)
            made = _Tile(
                builder, isa, KINDS[number], _addresses(e, args[4], row_count), _addresses(e, args[5], input_count)
            )
            sums = made.run(args[6], _addresses(e, args[7], row_count) if foresee else [], foresee == 2)
            for r, row in enumerate(sums):
                for t, value in enumerate(row):
                    e.store(value, args[8], 4 * (t * row_count + r))
            return context.get_dummy_value()

        return types.void(kind, rows, inputs, prefetch, *[types.int64] * 5), codegen

    return tile


tile = _make(instruction_set())
