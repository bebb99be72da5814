"""Products and sums of rows of every type against ggml's own decoding and NumPy."""

import ctypes

import numpy as np
import pytest

from tsconvert.model.files.gguf import ggml, numpy_row_functions
from tsconvert.quant.types.encoding import quantize
from tsconvert.runner.kernels import row_kernels, step  # noqa: F401  step imports every function
from tsconvert.runner.kernels.compiling import function_table
from tsconvert.runner.kernels.parameters import SCRATCH_BYTES, new_parameters
from tsconvert.runner.kernels.simd.block_tiles import KINDS as OWN
from tsconvert.runner.kernels.simd.grouped_sums import adds_groups
from tsconvert.runner.kernels.weight_types import input_bytes, prepare_inputs, type_record

FLOATS = ("F32", "F16", "BF16")
GGML = ("Q5_K", "IQ4_XS")
GROUPED = [name for number, name in enumerate(OWN) if adds_groups(number)]
ROWS, TOKENS = 21, 11
RNG = np.random.default_rng(7)
FUNCTIONS = function_table()


def widths(type_name):
    if type_name in FLOATS:
        return (1, 16, 77, 576)
    return (256, 768) if ggml.TYPES[type_name].weights == 256 else (32, 64, 96, 128, 576)


def sample(type_name, columns):
    raw = quantize(RNG.standard_normal((ROWS, columns)).astype(np.float32), type_name)
    inputs = (RNG.standard_normal((TOKENS, columns)) * RNG.uniform(0.1, 9, (TOKENS, 1))).astype(np.float32)
    inputs[2] = 0
    return raw, ggml.dequantize(raw, type_name, (ROWS, columns)).astype(np.float64), inputs


def rounded(x_TC, run=32, *, halved=False):
    """The slow twin of rounded_inputs.round_input: bytes with a scale per 32 (a half in Q8_0) or per 256 (Q8_K)."""
    runs = x_TC.reshape(len(x_TC), -1, run).astype(np.float64)
    scale = np.abs(runs).max(axis=2, keepdims=True) / 127
    steps = np.divide(runs, scale, out=np.zeros_like(runs), where=scale > 0)
    scale = scale.astype(np.float16).astype(np.float64) if halved else scale
    return (np.rint(steps) * scale).reshape(x_TC.shape)


class Kernel:
    """One type's kernels, called by their addresses as the step calls them."""

    def __init__(self, type_name, raw, columns, *, as_llama_cpp=False):
        self.name, self.raw, self.columns = type_name, raw, columns
        self.kind = type_record(type_name, as_llama_cpp=as_llama_cpp)
        self.params = new_parameters(functions=FUNCTIONS.ctypes.data)
        self.scratch = np.zeros(SCRATCH_BYTES + 4 * columns, np.uint8)

    def call(self, name, *numbers):
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * len(numbers))
        function(int(self.kind[name]))(self.params.ctypes.data, self.kind.ctypes.data, *numbers)

    def products(self, x_TC, listed, first, count, chosen=None, tokens=None):
        size = input_bytes(self.columns, [self.name])
        place = np.zeros(len(x_TC) * size + 64, np.uint8)
        address = place.ctypes.data + -place.ctypes.data % 64
        prepare_inputs(
            self.params.ctypes.data, self.kind.ctypes.data, x_TC.ctypes.data, self.columns, len(x_TC), address, size, 0
        )
        if self.name in FLOATS:
            address, size = x_TC.ctypes.data, 4 * self.columns
        out_RT = np.full((len(self.raw), len(x_TC)), 5, np.float32)
        self.call(
            "products", self.raw.ctypes.data, self.raw.shape[1], 0 if listed is None else listed.ctypes.data, first,
            count, self.columns, address, size, 0 if chosen is None else chosen.ctypes.data,
            len(x_TC) if tokens is None else tokens, out_RT.ctypes.data, len(x_TC), 1, self.scratch.ctypes.data,
        )  # fmt: skip
        return out_RT

    def add(self, weights_R, listed, first, count, into_C):
        self.call(
            "add", self.raw.ctypes.data, self.raw.shape[1], 0 if listed is None else listed.ctypes.data, first, count,
            first + count, weights_R.ctypes.data, self.columns, into_C.ctypes.data, self.scratch.ctypes.data,
        )  # fmt: skip
        return into_C


def expected(values_RC, x_TC, rows_of, tokens_of):
    twin_RT = np.full((ROWS, TOKENS), 5.0)
    for j in rows_of:
        twin_RT[j, tokens_of] = x_TC[tokens_of] @ values_RC[j]
    return twin_RT


@pytest.mark.parametrize("type_name", FLOATS + OWN)
def test_products_are_those_of_the_decoded_rows_and_the_rounded_input(type_name):
    for columns in widths(type_name):
        raw, values_RC, x_TC = sample(type_name, columns)
        kernel, seen_TC = Kernel(type_name, raw, columns), x_TC if type_name in FLOATS else rounded(x_TC)
        listed, chosen = RNG.permutation(ROWS).astype(np.int32), RNG.permutation(TOKENS).astype(np.int32)
        scale = np.abs(values_RC).max() * np.abs(x_TC).max() * columns
        for first, count in ((0, ROWS), (3, 1), (4, 7), (2, 0)):
            for tokens in (1, 2, 3, 8, TOKENS):
                ours = kernel.products(x_TC, None, first, count, None, tokens)
                twin = expected(values_RC, seen_TC, range(first, first + count), range(tokens))
                np.testing.assert_allclose(ours, twin, rtol=0, atol=3e-7 * scale)
                ours = kernel.products(x_TC, listed, first, count, chosen, tokens)
                twin = expected(values_RC, seen_TC, listed[first : first + count], chosen[:tokens])
                np.testing.assert_allclose(ours, twin, rtol=0, atol=3e-7 * scale)


@pytest.mark.parametrize(("type_name", "run"), [("Q4_K", 256), ("Q6_K", 256), ("Q5_0", 32), ("Q8_0", 32), ("F16", 1)])
def test_inputs_can_be_as_coarse_as_llama_cpp_s(type_name, run):
    raw, values_RC, x_TC = sample(type_name, 768)
    ours = Kernel(type_name, raw, 768, as_llama_cpp=True).products(x_TC, None, 0, ROWS)
    twin = expected(values_RC, x_TC if run == 1 else rounded(x_TC, run, halved=run == 32), range(ROWS), range(TOKENS))
    np.testing.assert_allclose(ours, twin, rtol=0, atol=3e-7 * np.abs(values_RC).max() * np.abs(x_TC).max() * 768)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K"])
def test_products_can_be_ggml_s_own(type_name):
    """With inputs as coarse as there, beside ggml's functions for the type."""
    raw, values_RC, x_TC = sample(type_name, 768)
    functions = ggml.row_functions(type_name)
    from_float = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, ctypes.c_int64)(functions.from_float)
    dot = ctypes.cast(functions.vec_dot, numpy_row_functions._VEC_DOT)
    theirs_RT, one, input_row = np.zeros((ROWS, TOKENS)), ctypes.c_float(), np.zeros(4 * 768, np.uint8)
    for t, x_C in enumerate(x_TC):
        from_float(x_C.ctypes.data, input_row.ctypes.data, 768)
        for r, row in enumerate(raw):
            dot(768, ctypes.byref(one), 0, row.ctypes.data, 0, input_row.ctypes.data, 0, 1)
            theirs_RT[r, t] = one.value
    ours_RT = Kernel(type_name, raw, 768, as_llama_cpp=True).products(x_TC, None, 0, ROWS)
    np.testing.assert_allclose(
        ours_RT, theirs_RT, rtol=0, atol=3e-7 * np.abs(values_RC).max() * np.abs(x_TC).max() * 768
    )


@pytest.mark.parametrize("type_name", GGML)
def test_other_types_go_through_ggml(type_name):
    columns = 256
    raw, values_RC, x_TC = sample(type_name, columns)
    ours = Kernel(type_name, raw, columns).products(x_TC, None, 1, 9)
    twin = expected(values_RC, x_TC, range(1, 10), range(TOKENS))
    # Q8 rounds each input by at most half of max/127: the sum of that many independent errors
    bound = np.abs(x_TC).max() / 127 * np.linalg.norm(values_RC[1]) * 2
    np.testing.assert_allclose(ours, twin, rtol=0, atol=bound)


@pytest.mark.parametrize("type_name", FLOATS + OWN)
def test_a_product_is_the_same_bits_in_every_tile(type_name):
    columns = 64 if type_name in FLOATS else widths(type_name)[-1]
    raw, _, x_TC = sample(type_name, columns)
    kernel = Kernel(type_name, raw, columns)
    whole_RT = kernel.products(x_TC, None, 0, ROWS)
    for t in range(TOKENS):
        chosen = np.array([t], np.int32)
        np.testing.assert_array_equal(kernel.products(x_TC, None, 0, ROWS, chosen, 1)[:, t], whole_RT[:, t])


@pytest.mark.parametrize("type_name", FLOATS + OWN + GGML)
def test_sums_are_those_of_the_decoded_rows(type_name):
    for columns in (256,) if type_name == "IQ4_XS" else widths(type_name):
        raw, values_RC, x_TC = sample(type_name, columns)
        kernel, weights_R = Kernel(type_name, raw, columns), RNG.standard_normal(ROWS).astype(np.float32)
        listed = RNG.permutation(ROWS).astype(np.int32)
        for first, count in ((0, ROWS), (3, 1), (4, 6), (2, 0)):
            for order in (None, listed):
                taken = np.arange(ROWS)[first : first + count] if order is None else order[first : first + count]
                twin_C = x_TC[0] + weights_R[taken].astype(np.float64) @ values_RC[taken]
                ours_C = kernel.add(weights_R, order, first, count, x_TC[0].copy())
                # shares of groups are rounded to whole numbers of 1/32512 of the largest
                unit = np.abs(weights_R).max() * np.abs(values_RC).max() / 32512 if type_name in GROUPED else 0
                np.testing.assert_allclose(ours_C, twin_C, rtol=1e-5, atol=2e-5 + count * unit / 2)


def in_groups(raw, weights_R, into_C):
    """The slow twin of simd/grouped_sums.py: sums of at least four Q4_0 rows, in groups of 16."""
    for first in range(0, len(raw), 16):
        blocks, shares_R = raw[first : first + 16].reshape(-1, len(into_C) // 32, 18), weights_R[first : first + 16]
        shares_RB = blocks[:, :, :2].copy().view(np.float16)[:, :, 0].astype(np.float32) * shares_R[:, None]
        largest_B = np.abs(shares_RB).max(axis=0)
        inverse_B = np.divide(np.float32(32512), largest_B, out=np.zeros_like(largest_B), where=largest_B >= 1e-30)
        whole_RB = np.rint(shares_RB.astype(np.float64) * inverse_B).astype(np.int64)
        levels = np.concatenate([blocks[:, :, 2:] & 15, blocks[:, :, 2:] >> 4], axis=2).astype(np.int64) - 8
        sums_BC = np.einsum("rb,rbc->bc", whole_RB, levels).astype(np.float32)
        into_C = into_C + (sums_BC * (largest_B * np.float32(1 / 32512))[:, None]).reshape(-1)  # in float32, as there
    return into_C


@pytest.mark.skipif(not GROUPED, reason="this processor does not permute bytes")
@pytest.mark.parametrize("rows", [4, 6, 16, 64, 133])
def test_shares_of_groups_are_rounded_to_16_bits(rows):
    random = np.random.default_rng(rows)  # its own: the bound is for sums of the size that these have
    raw = quantize(random.standard_normal((rows, 384)).astype(np.float32), "Q4_0")
    raw[:, :2], raw[:, 18:20] = 0, np.array([1], np.float16).view(np.uint8)
    weights_R, x_C = (random.standard_normal(count).astype(np.float32) for count in (rows, 384))
    weights_R **= 3
    for weights in (weights_R, np.zeros_like(weights_R), np.where(np.arange(rows) % 3, weights_R, 0)):
        ours_C = Kernel("Q4_0", raw, 384).add(weights.astype(np.float32), None, 0, rows, x_C.copy())
        np.testing.assert_allclose(ours_C, in_groups(raw, weights.astype(np.float32), x_C), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q6_K"])
def test_the_order_in_which_rows_come_from_memory_changes_no_bit(type_name, monkeypatch):
    random, rows, columns = np.random.default_rng(3), 150, 768
    raw = quantize(random.standard_normal((rows, columns)).astype(np.float32), type_name)
    x_TC, weights_R = (random.standard_normal(shape).astype(np.float32) for shape in ((1, columns), rows))
    listed, found = np.flatnonzero(random.random(rows) < 0.9).astype(np.int32), []
    for apart in (False, True):
        monkeypatch.setattr(row_kernels, "streams_apart", lambda apart=apart: apart)
        row_kernels.kernels.cache_clear()
        kernel = Kernel(type_name, raw, columns)
        ways = [(None, 0, rows), (None, 3, 141), (None, 5, 3), (listed, 0, len(listed)), (listed, 2, 71)]
        found.append([kernel.products(x_TC, *way) for way in ways])
        found[-1] += [kernel.add(weights_R, *way, np.zeros(columns, np.float32)) for way in ways]
    monkeypatch.undo()
    row_kernels.kernels.cache_clear()
    assert not np.array_equal(found[0][0], found[0][1])
    for before, after in zip(*found, strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_is_no_number_is_none_in_the_sum():
    raw, _, _ = sample("Q4_0", 256)
    for wrong in (np.nan, np.inf):
        weights_R = np.ones(ROWS, np.float32)
        weights_R[5] = wrong
        assert not np.isfinite(Kernel("Q4_0", raw, 256).add(weights_R, None, 0, ROWS, np.zeros(256, np.float32))).any()


@pytest.mark.parametrize("type_name", OWN)
def test_a_row_alone_is_decoded_exactly(type_name):
    """Blocks of tokens decode rows so."""
    raw, values_RC, _ = sample(type_name, 256)
    ours_C = Kernel(type_name, raw, 256).add(np.ones(ROWS, np.float32), None, 7, 1, np.zeros(256, np.float32))
    np.testing.assert_allclose(ours_C, values_RC[7], rtol=1e-6, atol=1e-7)


class Prepared:
    """A buffer that an input is prepared in, for one type after another."""

    def __init__(self, x_C, **options):
        self.x, self.params, self.options = x_C, new_parameters(functions=FUNCTIONS.ctypes.data), options
        self.place = np.zeros(input_bytes(len(x_C), ["Q4_0", "IQ4_XS"]), np.uint8)

    def form(self, type_name, last):
        kind, place = type_record(type_name, **self.options), self.place
        return prepare_inputs(
            self.params.ctypes.data, kind.ctypes.data, self.x.ctypes.data, len(self.x), 1, place.ctypes.data,
            place.size, last,
        )  # fmt: skip


def test_an_input_of_another_form_is_prepared_anew():
    prepared = Prepared(np.ones(256, np.float32))
    own = prepared.form("Q4_0", 0)
    before = prepared.place.copy()
    assert before.any()
    prepared.place[:] = 0
    assert prepared.form("Q8_0", own) == own
    assert prepared.form("F32", own) == own
    assert not prepared.place.any()
    assert prepared.form("IQ4_XS", own) not in (0, own)
    assert (prepared.place != before).any()


def test_a_coarser_input_is_another_form():
    prepared = Prepared(np.linspace(-1, 9, 256, dtype=np.float32), as_llama_cpp=True)
    fine = prepared.form("Q8_0", 0)
    before = prepared.place.copy()
    assert prepared.form("Q4_K", fine) not in (0, fine)
    assert (prepared.place != before).any()
