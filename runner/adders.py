"""Weighted sums of block rows into float32: what listed neurons add to the residual, four rows at a time.

Four rows share each load and store of the accumulator. The slow twin is `into += weights @ decoded rows`.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .groups import FORMATS, GROUP, RUN, RUNS, Group
from .simd import FLOAT, FLOATS, I8, I64, INTS, Emit, instruction_set
from .tiles import KINDS, blocks_at

_SIXTEEN = ir.VectorType(I8, 16)


def _make(isa: str) -> Any:
    @intrinsic(prefer_literal=True)
    def add_rows(
        typingctx: Any, kind: Any, rows: Any, rows_at: Any, weights_at: Any, columns: Any, into: Any,  # noqa: ARG001
    ) -> Any:  # fmt: skip
        """into[i] += sum over rows of weight x row[i].

        ``kind`` (an index of tiles.KINDS) and the number of ``rows`` are constants; int64 addresses stand at
        ``rows_at``, float32 weights at ``weights_at``.
        """
        number, count = kind.literal_value, rows.literal_value

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
            e = Emit(builder, isa)
            addresses = [e.load(I64, args[2], 8 * r) for r in range(count)]
            weights = [e.splat(e.load(FLOAT, args[3], 4 * r)) for r in range(count)]
            _emit(e, KINDS[number], addresses, weights, args[4], args[5])
            return context.get_dummy_value()

        return types.void(kind, rows, *[types.int64] * 4), codegen

    return add_rows


def _emit(e: Emit, kind: str, rows: Sequence[Any], weights: Sequence[Any], columns: Any, into: Any) -> None:
    b, form = e.b, FORMATS[kind]
    steps = b.udiv(columns, ir.Constant(I64, form.step_weights))
    step_bytes = ir.Constant(I64, form.blocks * form.size_bytes)
    with cgutils.for_range(b, steps, intp=I64) as loop:
        offset = b.mul(loop.index, step_bytes)
        target = b.add(into, b.mul(loop.index, ir.Constant(I64, 4 * form.step_weights)))
        expanded = [form.expand(e, blocks_at(e, form, row, offset)) for row in rows]
        for number in range(len(expanded[0])):
            for run in range(RUNS):
                _add_run(e, [groups[number] for groups in expanded], weights, run, target, number * GROUP + run * RUN)
    if form.weights < GROUP:
        left = b.udiv(b.urem(columns, ir.Constant(I64, GROUP)), ir.Constant(I64, form.weights))
        offset = b.mul(steps, step_bytes)
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
            whole = e.b.sitofp(e.b.sext(e.pick(quants, lanes), INTS), FLOATS)
            total = e.fma(whole, e.pick(e.b.fmul(scale, weight), spread), total)
            if group.minimum is not None:
                total = e.b.fsub(total, e.pick(e.b.fmul(group.minimum, weight), spread))
        e.store(total, into, 4 * (first + 16 * half))


add_rows = _make(instruction_set())
