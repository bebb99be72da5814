"""The product of four bytes, by every instruction set that this machine has, against NumPy."""

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import njit, types
from numba.extending import intrinsic

from tsconvert.runner.kernels.simd import emit as simd


@pytest.mark.parametrize("isa", [simd.AVX512, simd.AVXVNNI, simd.AVX2, simd.GENERIC])
def test_sums_of_four_products_are_exact_at_the_ends_of_the_range(isa):
    if not all(llvm.get_host_cpu_features().get(name) for name in simd._NEEDED.get(isa, ())):
        pytest.skip(f"this processor has no {isa}")

    @intrinsic
    def dot4(typingctx, total, unsigned, signed):
        def codegen(context, builder, signature, args):
            e = simd.Emit(builder, isa)
            values = e.load(simd.INTS, args[0]), e.load(simd.BYTES, args[1]), e.load(simd.BYTES, args[2])
            e.store(e.dot4(*values), args[0])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    run = njit(lambda total, unsigned, signed: dot4(total, unsigned, signed))
    rng = np.random.default_rng(1)
    for unsigned in (np.full(64, 255, np.uint8), rng.integers(0, 256, 64, np.uint8)):
        for signed in (np.full(64, -128, np.int8), np.full(64, 127, np.int8), rng.integers(-128, 128, 64, np.int8)):
            total = rng.integers(-1000, 1000, 16).astype(np.int32)
            twin = total + (unsigned.astype(np.int64) * signed).reshape(16, 4).sum(axis=1)
            run(total.ctypes.data, unsigned.ctypes.data, signed.ctypes.data)
            np.testing.assert_array_equal(total, twin)
