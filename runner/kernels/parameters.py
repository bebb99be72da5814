"""What a compiled step works on: one record of numbers, tensors and buffers, all read by name.

Compiled code sees the records through Numba's record types, Python through NumPy's dtypes, of the same definition.

Shape suffixes and dimensions: L layers, D model width, F neurons, E experts, K experts per token, P positions, S slots
of the cache, N threads, T tokens of a block, X threads or tokens: on one token every thread works in a row of its own,
of a block every token has a row.
"""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import from_dtype, types

from ...model.tensor_names import BIASED, MATRICES, NORMS
from .simd.emit import I64, Emit, emitted

Array = npt.NDArray[Any]
BLOCK = 128
"""Tokens of a prompt that run through the model together."""
LEAVES = 32  # of the tree that a token's neurons are summed in (reduction_tree.py); a power of two
SUMS, DEPTH = 10, 6  # that a thread may hold at once: at most two nodes a size; and one a size
LINE = 16  # int32 in a cache line
PANEL_ROWS, PANEL_COLUMNS = 64, 256  # of transposed rows decoded at once for a block
SCRATCH_BYTES = 1280  # of a thread, before the floats of a decoded row (row_kernels.py)

DENSE, EXACT, PREDICTED = range(3)
MODES = {"dense": DENSE, "exact": EXACT, "predicted": PREDICTED}
SWIGLU, DRELU, REGLU, GEGLU, TSWIGLU, TGEGLU = range(6)
ACTIVATIONS = {"swiglu": SWIGLU, "drelu": DRELU, "reglu": REGLU, "geglu": GEGLU, "tswiglu": TSWIGLU, "tgeglu": TGEGLU}

HEAD, WHOLE = 1, 2
QK_NORMS = {"": 0, "head": HEAD, "whole": WHOLE}

# The buffers: what an element is, how many rows, and the product of numbers that is a row's length.
BUFFERS = {
    "x": ("float32", "X", "D"),  # the residual
    "normed": ("float32", "X", "D"),
    "prepared": ("uint8", "X", "input_bytes"),  # an input in the form that rows meet
    "prepared_hidden": ("uint8", "X", "hidden_bytes"),  # the same of fc2's or a down matrix's input
    "query": ("float32", "T", "heads"),
    "key": ("float32", "T", "kv"),
    "value": ("float32", "T", "kv"),
    "qk_scale": ("float32", "T", "two"),  # of a token's queries and of its keys, where all heads have one norm
    "attended": ("float32", "T", "heads"),
    "largest": ("int32", "N", "heads"),  # of what one token attended to, the inputs that its output is made of
    "added": ("float32", "T", "D"),  # what attention or FFN add to the residual
    "other": ("float32", "T", "D"),  # what one of several experts adds
    "keys": ("uint8", "L", "cache_bytes"),  # [kv heads, S, bytes]
    "values": ("uint8", "L", "cache_bytes"),
    "hidden": ("float32", "lines", "R"),  # of predictors: a row per token, or of one token a row per chosen expert
    "logits": ("float32", "lines", "F"),  # of predictors: [F, T] for a block, [K, F] for a token
    "gate": ("float32", "lines", "F"),  # the same, or [T, F] if down is as llama.cpp has it
    "up": ("float32", "lines", "F"),
    "listed": ("int32", "N", "K F"),  # neurons that a thread found for one token
    "found": ("int32", "N", "K line"),  # how many
    "mine": ("int32", "N", "K F"),  # of all that were found, a thread's share
    "ends": ("int32", "N", "K leaves"),  # where in it the thread's leaves end
    "chosen_tokens": ("int32", "N", "T"),  # of a block, those of an expert
    "firing_tokens": ("int32", "N", "T"),  # of these, those for which a neuron may fire
    "choice": ("int64", "X", "K"),  # a token's experts
    "share": ("float32", "X", "K"),  # with what weights
    "router_logits": ("float32", "N", "E"),
    "partial": ("float32", "N", "sums D"),  # a thread's sums of leaves
    "whole": ("float32", "N", "depth D"),  # all threads'
    "panel": ("float32", "N", "panel_rows panel_columns"),  # decoded rows of a transposed matrix
    "firing": ("int32", "N", "T panel_rows"),  # which of them a token needs,
    "firing_shares": ("float32", "N", "T panel_rows"),  # with what weights,
    "firing_counts": ("int32", "N", "T"),  # and how many
    "scores": ("float32", "N", "group scores"),
    "queries": ("uint8", "N", "group query_bytes"),
    "scratch": ("uint8", "N", "scratch_bytes"),
}
# The functions that others call: the order of their table.
_FUNCTION_NAMES = (
    "meet", "aborted", "stay", "step", "share_start", "run_start", "token_start", "clear", "copy_floats", "add_floats",
    "scale_floats", "cap_floats", "add_bias", "norm_scale", "rms_norm", "normalise", "add_row", "add_to_residual",
    "read_row", "embed", "round_input", "prepare_inputs", "ready", "multiply", "multiply_run", "add_listed",
    "rotate", "rotate_halves", "place_rows", "place_in_cache", "norm_scales", "turn_head", "place_heads", "softmax",
    "attend_heads", "heads_are_own", "attend", "least_kept", "list_largest", "keep_largest", "leaves_out",
    "output_of_token", "output_of_block", "attention", "choose_experts", "route", "choose_tokens", "share_for",
    "add_neuron_bias", "add_token_bias", "shift_gates", "shift_token_gates", "shift_ups", "activate", "activate_run",
    "has_predictor", "list_predicted", "list_open", "keep_open", "keep_firing", "count_missed", "predictor_hidden",
    "find_neurons", "first_leaf", "leaf_start", "sum_at", "join_sums", "join_all", "add_sums", "take_share",
    "end_leaves", "token_activations", "sum_leaves", "ffn_of_token", "chosen_above", "chosen_open", "predictor_logits",
    "predicted_gates", "open_ups", "drop_missed", "activate_tokens", "block_activations", "list_firing", "decode_part",
    "add_panel", "column_start", "begin_sums", "sum_rows", "ffn_of_block", "down_product", "expert_by_matrix",
    "ffn_by_matrix", "ffn", "head",
)  # fmt: skip


def _source_hash() -> str:
    """A hash of every source that is compiled: Numba's caches look at one file each."""
    digest = hashlib.sha256(repr(MATRICES).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _record(**fields: Any) -> np.dtype[np.void]:
    return np.dtype(list(fields.items()), align=True)


def offset_of(record: np.dtype[np.void], name: str) -> int:
    """Where in a record a field begins, in bytes."""
    assert record.fields
    return record.fields[name][1]


_I = np.int64
FUNCTIONS = _record(**dict.fromkeys(_FUNCTION_NAMES, _I))
BUFFER = _record(address=_I, row_bytes=_I)
TYPE = _record(kind=_I, vec_dot=_I, to_float=_I, from_float=_I, products=_I, add=_I)
"""A block type: weight_types.py; addresses of ggml's functions and of our kernels (row_kernels.py)."""
TENSOR = _record(type=TYPE, address=_I, rows=_I, columns=_I, row_bytes=_I, expert_bytes=_I)
"""A matrix, or one an expert; address 0 where there is none."""
LAYER = _record(
    index=_I,
    **dict.fromkeys(NORMS, _I),  # addresses of float32; 0 where there is none, also of the biases
    **{f"{role}_bias": _I for role in BIASED},
    cos=BUFFER,  # [P, rotated / 2]; address 0 where nothing turns
    sin=BUFFER,
    window=_I,
    slots=_I,
    thresholds=_I,  # [E] float32, of predictors; NaN where an FFN has none
    shift=np.float32,  # up to which a gate's, and under dReLU an up's, value counts as zero; with thresholds: its size
    shifts=_I,  # [E, F] float32, each neuron's own shift, where they differ; else 0
    least=np.float32,  # with thresholds: up to which an activation's size counts as zero
    **dict.fromkeys(MATRICES, TENSOR),
)
COUNTS = _record(gate=_I, up=_I, down=_I, fired=_I, predicted=_I, missed=_I, attended=_I)
"""Rows read of each matrix (`attended`: of attn_output_t), neurons that were not zero, that were predicted, and that
fired without being predicted."""
# the last line is set anew for each step
_NUMBERS = (
    "layers", "width", "neurons", "heads", "kv_heads", "head_dim", "rotated", "activation", "transposed",
    "normed_predictors", "linear_predictors", "experts", "experts_per_token", "router_normalized", "threads",
    "head_wise",  # queries and keys are finished head by head, after all threads have met: one of the next three
    "halves", "qk_norm", "temperature_length",
    "kept_inputs",  # of attn_output_t, that a token of predicted mode keeps at least; 0: the matrix is not transposed
    "token_ids", "tokens", "position",
    "mode", "audit", "logits_out", "outputs",
)  # fmt: skip
_SCALES = (
    "attention_scale", "attention_softcap", "logit_scale", "logit_softcap", "embedding_scale", "residual_scale",
    "temperature",
)  # fmt: skip
PARAMETERS = _record(
    functions=_I,  # a record FUNCTIONS
    sync=_I,  # barrier.py
    eps=np.float64,
    **dict.fromkeys(_SCALES, np.float32),
    **dict.fromkeys(_NUMBERS, _I),
    layer_table=_I,  # [L] records LAYER
    token_embd=TENSOR,
    output=TENSOR,
    output_norm=_I,
    cache_type=TYPE,
    cache_row=_I,  # bytes of one head's key
    counts=BUFFER,  # [N, L] records COUNTS
    **dict.fromkeys(BUFFERS, BUFFER),
    **{f"sources_{_source_hash()}": _I},  # the caches' key (compiling.py)
)
Buffer = Annotated[Any, from_dtype(BUFFER)]
Parameters = Annotated[Any, from_dtype(PARAMETERS)]
Layer = Annotated[Any, from_dtype(LAYER)]
Tensor = Annotated[Any, from_dtype(TENSOR)]
BlockType = Annotated[Any, from_dtype(TYPE)]


def numba_type(hint: Any) -> Any:
    """What an annotation is for Numba: a whole number, a float32, nothing, or one of the records."""
    numbers = {int: types.int64, float: types.float32, np.float32: types.float32, None: types.void}
    return numbers[hint] if hint in numbers else hint.__metadata__[0]


@emitted(types.int64, from_dtype(BUFFER), types.int64)
def row_at(e: Emit, buffer: Any, row: Any) -> Any:
    """The address of a row of a buffer."""
    fields = e.b.ptrtoint(buffer, I64)
    return e.b.add(e.load(I64, fields), e.b.mul(row, e.load(I64, fields, offset_of(BUFFER, "row_bytes"))))


def _element_of(record: np.dtype[np.void]) -> Any:
    kind = ir.ArrayType(ir.IntType(8), record.itemsize)

    @emitted(from_dtype(record), types.int64, types.int64)
    def element(e: Emit, address: Any, index: Any) -> Any:
        return e.b.inttoptr(e.b.add(address, e.b.mul(index, ir.Constant(I64, record.itemsize))), kind.as_pointer())

    return element


layer_at, counts_at = _element_of(LAYER), _element_of(COUNTS)  # of an array's address and an index


def new_buffers(sizes: dict[str, int]) -> dict[str, Array]:
    """Every buffer, of zeros, aligned to a cache line. Their pages cost memory once they are written.

    Args:
        sizes: the dimensions that BUFFERS names.
    """
    sizes = sizes | {
        "T": BLOCK, "line": LINE, "leaves": LEAVES, "sums": SUMS, "depth": DEPTH,
        "two": 2, "panel_rows": PANEL_ROWS, "panel_columns": PANEL_COLUMNS,
    }  # fmt: skip
    made = {}
    for name, (element, rows, columns) in BUFFERS.items():
        shape, dtype = (sizes[rows], math.prod(sizes[each] for each in columns.split())), np.dtype(element)
        whole = np.zeros(math.prod(shape) * dtype.itemsize + 64, np.uint8)
        start = -whole.ctypes.data % 64
        made[name] = whole[start : len(whole) - 64 + start].view(dtype).reshape(shape)
    return made


def new_parameters(**fields: Any) -> Array:
    """A record PARAMETERS [] with these fields, zero elsewhere. An array becomes a buffer, and must outlive it."""
    parameters = np.zeros((), PARAMETERS)
    for name, value in fields.items():
        parameters[name] = buffer_of(value) if isinstance(value, np.ndarray) and value.shape else value
    return parameters


def buffer_of(array: Array) -> tuple[int, int]:
    """A record BUFFER: the address of an array, and the bytes from one row to the next."""
    assert array.flags.c_contiguous
    return array.ctypes.data, array.strides[0]
