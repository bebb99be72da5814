"""Weighted sums of block rows into float32: what listed neurons add to the residual, four rows at a time.

Four rows share each load and store of the accumulator. The slow twin is `into += weights @ decoded rows`.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .block_groups import FORMATS, GROUP, RUN, RUNS, Group, Neighbours
from .block_tiles import ABREAST, KINDS, ask_rest, ask_step, blocks_at, row_bytes
from .emit import AVX512, FLOAT, FLOATS, HALF, I8, I32, I64, INTS, Emit, instruction_set, streams_apart

_SIXTEEN = ir.VectorType(I8, 16)


def adds_abreast(number: int) -> bool:
    """Whether ABREAST rows of a type, by its index in KINDS, are added up at once: where listed ones are asked for by
    columns (`streams_apart`). Of other types than these the arithmetic is slower so (Q4_K 9.3 and 7.9 GB/s)."""
    return streams_apart() and KINDS[number] in LEVELS


def _make(isa: str) -> Any:
    @intrinsic(prefer_literal=True)
    def add_rows(
        typingctx: Any, kind: Any, rows: Any, rows_at: Any, weights_at: Any, columns: Any,  # noqa: ARG001
        into: Any, ahead_at: Any,  # noqa: ARG001
    ) -> Any:  # fmt: skip
        """into[i] += sum over rows of weight x row[i].

        ``kind`` (an index of block_tiles.KINDS) and the number of ``rows`` are constants; int64 addresses stand at
        ``rows_at``, float32 weights at ``weights_at``. Lines of rows at ``ahead_at`` are asked for at the same pace,
        of ABREAST rows the bytes that a step reads of its own.
        """
        number, count = kind.literal_value, rows.literal_value

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
            e = Emit(builder, isa)
            addresses = [e.load(I64, args[2], 8 * r) for r in range(count)]
            weights = [e.splat(e.load(FLOAT, args[3], 4 * r)) for r in range(count)]
            ahead = [e.load(I64, args[6], 8 * r) for r in range(count)]
            _emit(e, KINDS[number], addresses, weights, args[4], args[5], ahead)
            return context.get_dummy_value()

        return types.void(kind, rows, *[types.int64] * 5), codegen

    return add_rows


def _emit(
    e: Emit, kind: str, rows: Sequence[Any], weights: Sequence[Any], columns: Any, into: Any, ahead: Sequence[Any]
) -> None:
    if e.isa == AVX512 and kind in LEVELS:
        _emit_looked_up(e, kind, rows, weights, columns, into, ahead)
    else:
        _emit_groups(e, kind, rows, weights, columns, into, ahead)


def _emit_looked_up(
    e: Emit, kind: str, rows: Sequence[Any], weights: Sequence[Any], columns: Any, into: Any, ahead: Sequence[Any]
) -> None:
    """Types with a scale per 32: a permutation looks levels up by their low four bits, which needs no masks."""
    b, form = e.b, FORMATS[kind]
    steps = b.udiv(columns, ir.Constant(I64, GROUP))
    shares = e.join([e.pick(weight, range(RUNS)) for weight in weights])
    left = b.udiv(b.urem(columns, ir.Constant(I64, GROUP)), ir.Constant(I64, form.weights))
    step_bytes, abreast = form.blocks * form.size_bytes, len(rows) == ABREAST
    with e.loop(steps) as index:
        offset = b.mul(index, ir.Constant(I64, step_bytes))
        ask_step(e, ahead, index, step_bytes, abreast)
        target = b.add(into, b.mul(index, ir.Constant(I64, 4 * GROUP)))
        blocks = [blocks_at(e, form, row, offset) for row in rows]
        scales = _scales(e, blocks, shares)
        for run in range(RUNS):
            _look_up_run(e, kind, blocks, scales, run, b.add(target, ir.Constant(I64, 4 * RUN * run)))
    ask_rest(e, ahead, steps, step_bytes, row_bytes(e, form, columns), abreast)
    offset = b.mul(steps, ir.Constant(I64, step_bytes))
    target = b.add(into, b.mul(steps, ir.Constant(I64, 4 * GROUP)))
    with b.if_then(b.icmp_unsigned("!=", left, ir.Constant(I64, 0))):
        blocks = [blocks_at(e, form, row, offset, left) for row in rows]
        scales = _scales(e, blocks, shares)
        for run in range(RUNS - 1):
            with b.if_then(b.icmp_unsigned("<", ir.Constant(I64, run), left)):
                _look_up_run(e, kind, blocks, scales, run, b.add(target, ir.Constant(I64, 4 * RUN * run)))


def _scales(e: Emit, blocks: Sequence[Sequence[Any]], shares: Any) -> Any:
    """Four scales of each row, times the row's weight."""
    together = [row for row in blocks if isinstance(row, Neighbours)]
    if len(together) == len(blocks):
        halves = e.join([row.words(e, 1) for row in together])
        return e.b.fmul(e.b.fpext(halves, shares.type), shares)
    halves = ir.Constant(ir.VectorType(HALF, RUNS * len(blocks)), ir.Undefined)
    for i, address in enumerate(address for row in blocks for address in row):
        halves = e.b.insert_element(halves, e.load(HALF, address), ir.Constant(I32, i))
    return e.b.fmul(e.b.fpext(halves, shares.type), shares)


def _look_up_run(e: Emit, kind: str, blocks: Sequence[Sequence[Any]], scales: Any, run: int, into: Any) -> None:
    totals = [e.load(FLOATS, into), e.load(FLOATS, into, 64)]
    for r, row in enumerate(blocks):
        scale = e.pick(scales, [RUNS * r + run] * 16)
        totals = [e.fma(level, scale, total) for level, total in zip(LEVELS[kind](e, row[run]), totals, strict=True)]
    e.store(totals[0], into)
    e.store(totals[1], into, 64)


def _levels_q4_0(e: Emit, block: Any) -> list[Any]:
    wide = e.b.zext(e.load(_SIXTEEN, block, 2), INTS)
    table = ir.Constant(FLOATS, [float(level - 8) for level in range(16)])
    indices = (wide, e.b.lshr(wide, e.all(INTS, 4)))
    return [e.call("llvm.x86.avx512.permvar.sf.512", FLOATS, table, index) for index in indices]


def _levels_q8_0(e: Emit, block: Any) -> list[Any]:
    return [e.b.sitofp(e.b.sext(e.load(_SIXTEEN, block, offset), INTS), FLOATS) for offset in (2, 18)]


LEVELS = {"Q4_0": _levels_q4_0, "Q8_0": _levels_q8_0}


def _emit_groups(
    e: Emit, kind: str, rows: Sequence[Any], weights: Sequence[Any], columns: Any, into: Any, ahead: Sequence[Any]
) -> None:
    b, form = e.b, FORMATS[kind]
    steps = b.udiv(columns, ir.Constant(I64, form.step_weights))
    step_bytes = form.blocks * form.size_bytes
    with e.loop(steps) as index:
        offset = b.mul(index, ir.Constant(I64, step_bytes))
        ask_step(e, ahead, index, step_bytes, False)
        target = b.add(into, b.mul(index, ir.Constant(I64, 4 * form.step_weights)))
        expanded = [form.expand(e, blocks_at(e, form, row, offset)) for row in rows]
        for number in range(len(expanded[0])):
            for run in range(RUNS):
                _add_run(e, [groups[number] for groups in expanded], weights, run, target, number * GROUP + run * RUN)
    ask_rest(e, ahead, steps, step_bytes, row_bytes(e, form, columns), False)
    if form.weights < GROUP:
        left = b.udiv(b.urem(columns, ir.Constant(I64, GROUP)), ir.Constant(I64, form.weights))
        offset = b.mul(steps, ir.Constant(I64, step_bytes))
        target = b.add(into, b.mul(steps, ir.Constant(I64, 4 * GROUP)))
        with b.if_then(b.icmp_unsigned("!=", left, ir.Constant(I64, 0))):
            expanded = [form.expand(e, blocks_at(e, form, row, offset, left)) for row in rows]
            for run in range(RUNS - 1):
                with b.if_then(b.icmp_unsigned("<", ir.Constant(I64, run), left)):
                    _add_run(e, [groups[0] for groups in expanded], weights, run, target, run * RUN)


def _add_run(e: Emit, groups: Sequence[Group], weights: Sequence[Any], run: int, into: Any, first: int) -> None:
    """A run of 32 columns: its low and its high half of 16."""
    lanes, spread = range(16 * run, 16 * run + 16), [4 * run] * 16
    for half in (0, 1):
        total = e.load(FLOATS, into, 4 * (first + 16 * half))
        for group, weight in zip(groups, weights, strict=True):
            quants, scale = (group.low, group.scale_low) if half == 0 else (group.high, group.scale_high)
            scale = group.scale_low if scale is None else scale
            if group.offset is None:
                wide = e.b.sext(e.pick(quants, lanes), INTS)
            else:
                wide = e.b.sub(e.b.zext(e.pick(quants, lanes), INTS), e.all(INTS, group.offset))
            whole = e.b.sitofp(wide, FLOATS)
            total = e.fma(whole, e.pick(e.b.fmul(scale, weight), spread), total)
            if group.minimum is not None:
                total = e.b.fsub(total, e.pick(e.b.fmul(group.minimum, weight), spread))
        e.store(total, into, 4 * (first + 16 * half))


add_rows = _make(instruction_set())
