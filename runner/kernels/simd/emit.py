"""Emitting LLVM vector code: loads, shuffles, and the four-byte dot product, for the instruction set at hand.

Kernels are written once, over vectors of 16 floats, 16 int32 or 64 bytes. LLVM splits them where registers are
narrower. Only the byte product is chosen by instruction set: VNNI (AVX-512 or AVX), AVX2's pmaddwd, or plain LLVM.
"""

import contextlib
import functools
import inspect
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.extending import lower_builtin, type_callable

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
HALF, FLOAT = ir.HalfType(), ir.FloatType()
LANES = 16
FLOATS, INTS, BYTES = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES), ir.VectorType(I8, 4 * LANES)

AVX512, AVXVNNI, AVX2, GENERIC = "avx512", "avxvnni", "avx2", "generic"
_NEEDED = {
    AVX512: ("avx512vnni", "avx512bw", "avx512vl", "avx512dq"),
    AVXVNNI: ("avxvnni", "avx2", "fma"),
    AVX2: ("avx2", "fma"),
}


def instruction_set() -> str:
    """The best of AVX512, AVXVNNI, AVX2 and GENERIC that Numba compiles for on this machine."""
    if platform.machine().lower() not in ("x86_64", "amd64") or os.environ.get("NUMBA_CPU_NAME"):
        return GENERIC
    features = llvm.get_host_cpu_features()
    return next((name for name, needed in _NEEDED.items() if all(features.get(key) for key in needed)), GENERIC)


def permutes_bytes() -> bool:
    """Whether bytes of two vectors are permuted in one instruction (AVX512-VBMI)."""
    return instruction_set() == AVX512 and bool(llvm.get_host_cpu_features().get("avx512vbmi"))


@functools.cache
def _zen5() -> bool:
    return llvm.get_host_cpu_name() == "znver5"


def prefetch_locality() -> int:
    """How near coming lines are asked for, as llvm.prefetch has it: 2, into the second cache; on Zen 5 3, the first.

    On their way into the first one there may be fewer at a time: so a core of Zen 4 reads 19 GB/s, and 27 into the
    second. Zen 5 is faster with the first (docs/benchmarks/runner_2cores_2026-11-29.md).
    """
    return 3 if _zen5() else 2


def streams_apart() -> bool:
    """Whether four rows that meet an input are a quarter of all rows apart, not neighbours, and sums of listed rows ask
    for several abreast: on Zen 5, which foresees four streams of far pages better than one
    (docs/benchmarks/runner_2cores_2026-11-29.md)."""
    return _zen5()


def register(function: Any, signature: Any, write: Callable[..., Any]) -> None:
    """Let compiled code call ``function``, of a Numba signature; ``write(context, e, *args)`` writes the LLVM code."""
    names = [inspect.Parameter(f"a{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(len(signature.args))]

    def typed(*_args: Any) -> Any:
        return signature

    def lower(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        value = write(context, Emit(builder, instruction_set()), *args)
        return context.get_dummy_value() if value is None else value

    typed.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    type_callable(function)(lambda _context: typed)
    lower_builtin(function, *signature.args)(lower)


def emitted(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function for compiled code, of Numba types, whose LLVM code the decorated function writes.

    The decorated function has an `Emit` and the arguments' LLVM values, and returns the result's.
    """

    def decorate(write: Callable[..., Any]) -> Any:
        register(write, result(*arguments), lambda _context, e, *args: write(e, *args))
        return write

    return decorate


class Emit:
    """Writes vector instructions through ``builder`` for an instruction set."""

    def __init__(self, builder: Any, isa: str) -> None:
        self.b, self.isa, self.permutes_bytes = builder, isa, isa == AVX512 and permutes_bytes()

    def load(self, kind: Any, address: Any, offset: int = 0) -> Any:
        """The unaligned value of LLVM type ``kind`` at an int64 ``address`` plus bytes."""
        return self.b.load(self._pointer(kind, address, offset), align=1)

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        """Write ``value`` there."""
        self.b.store(value, self._pointer(value.type, address, offset), align=1)

    def _pointer(self, kind: Any, address: Any, offset: int) -> Any:
        base = self.b.inttoptr(address, I8.as_pointer())
        return self.b.bitcast(self.b.gep(base, [ir.Constant(I64, offset)]), kind.as_pointer())

    def all(self, kind: Any, value: float) -> Any:
        """A constant vector of equal lanes."""
        return ir.Constant(kind, [value] * kind.count)

    def splat(self, value: Any, count: int = LANES) -> Any:
        """``value`` in ``count`` lanes."""
        kind = ir.VectorType(value.type, count)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        return self.pick(one, [0] * count)

    def pick(self, vector: Any, lanes: Sequence[int], other: Any = None) -> Any:
        """The numbered lanes of ``vector``, or beyond its end of ``other``."""
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return self.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined) if other is None else other, mask)

    def join(self, parts: Sequence[Any]) -> Any:
        """Vectors of one type behind each other; as many as a power of two."""
        parts = list(parts)
        while len(parts) > 1:
            lanes = range(2 * parts[0].type.count)
            parts = [self.pick(a, lanes, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def at(self, kind: Any, address: Any, index: Any) -> Any:
        """A pointer to element ``index`` of the row of ``kind`` at an int64 ``address``."""
        return self.b.gep(self.b.inttoptr(address, kind.as_pointer()), [index])

    def variable(self, initial: Any) -> Any:
        """A pointer to a place on the stack, which LLVM turns into a register; its value at first is ``initial``."""
        with self.b.goto_entry_block():
            place = self.b.alloca(initial.type)
        self.b.store(initial, place)
        return place

    @contextlib.contextmanager
    def loop(self, count: Any) -> Iterator[Any]:
        """What is written inside runs ``count`` times; yields the index, an int64."""
        b, before = self.b, self.b.block
        head, body, after = (b.append_basic_block(name) for name in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(ir.Constant(I64, 0), before)
        b.cbranch(b.icmp_signed("<", index, count), body, after)
        b.position_at_end(body)
        yield index
        index.add_incoming(b.add(index, ir.Constant(I64, 1)), b.block)
        b.branch(head)
        b.position_at_end(after)

    def call(self, name: str, result: Any, *values: Any) -> Any:
        """The LLVM intrinsic ``name``."""
        kind = ir.FunctionType(result, [value.type for value in values])
        module = self.b.module
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.b.call(function, values)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c in one rounding."""
        return self.call(f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)

    def total(self, vector: Any) -> Any:
        """The sum of all lanes of a float vector, in pairs."""
        count = vector.type.count
        while count > 1:
            count //= 2
            vector = self.b.fadd(self.pick(vector, range(count)), self.pick(vector, range(count, 2 * count)))
        return self.b.extract_element(vector, ir.Constant(I32, 0))

    def prefetch(self, address: Any, offset: int = 0) -> None:
        """Ask for the cache line at ``address`` plus bytes, into the cache that `prefetch_locality` says."""
        pointer = self._pointer(I8, address, offset)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        name = "llvm.prefetch.p0" if llvm.llvm_version_info[0] >= 15 else "llvm.prefetch.p0i8"
        function = self.b.module.globals.get(name) or ir.Function(self.b.module, kind, name)
        self.b.call(function, [pointer, *(ir.Constant(I32, number) for number in (0, prefetch_locality(), 1))])

    def dot4(self, total: Any, unsigned: Any, signed: Any) -> Any:
        """total[i] + the sum over its four bytes of unsigned x signed; INTS, BYTES, BYTES. Exact."""
        if self.isa == AVX512:
            return self._vnni(512, total, unsigned, signed)
        if self.isa == AVXVNNI:
            halves = [
                self._vnni(256, self._half(total, part), self._half(unsigned, part), self._half(signed, part))
                for part in (0, 1)
            ]
            return self.join(halves)
        if self.isa == AVX2:
            halves = [self._words(self._half(unsigned, part), self._half(signed, part)) for part in (0, 1)]
            return self.b.add(total, self.join(halves))
        return self.b.add(total, self._words(unsigned, signed))

    def _half(self, vector: Any, part: int) -> Any:
        count = vector.type.count // 2
        return self.pick(vector, range(part * count, (part + 1) * count))

    def _vnni(self, bits: int, total: Any, unsigned: Any, signed: Any) -> Any:
        kind = ir.VectorType(I32, bits // 32)
        values = (total, self.b.bitcast(unsigned, kind), self.b.bitcast(signed, kind))
        return self.call(f"llvm.x86.avx512.vpdpbusd.{bits}", kind, *values)

    def _words(self, unsigned: Any, signed: Any) -> Any:
        """The same without a total: odd and even bytes as 16-bit numbers, whose products are added in pairs."""
        kind = ir.VectorType(I16, unsigned.type.count // 2)
        u, s, eight = self.b.bitcast(unsigned, kind), self.b.bitcast(signed, kind), self.all(kind, 8)
        even = self._pairs(self.b.and_(u, self.all(kind, 255)), self.b.ashr(self.b.shl(s, eight), eight))
        return self.b.add(even, self._pairs(self.b.lshr(u, eight), self.b.ashr(s, eight)))

    def _pairs(self, a: Any, b: Any) -> Any:
        count = a.type.count
        if self.isa == AVX2:
            return self.call("llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, count // 2), a, b)
        wide = ir.VectorType(I32, count)
        product = self.b.mul(self.b.sext(a, wide), self.b.sext(b, wide))
        return self.b.add(self.pick(product, range(0, count, 2)), self.pick(product, range(1, count, 2)))
