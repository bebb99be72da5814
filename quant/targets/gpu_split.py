"""The choice of the neurons that PowerInfer keeps on the GPU: an integer programme, and the file that it is given.

PowerInfer's own solver (powerinfer-py/powerinfer/solver.py) is followed in what it asks for: neurons in groups of 256,
the most frequent first; the sum of their activation counts as large as the capacity allows; a layer takes part with at
least a threshold of neurons or not at all. Here the capacity is in bytes, taken from the file's own tensors instead of
an estimate, the solver is SciPy's HiGHS, and the layers are in the order of their numbers.

Shape suffixes: F neurons, L layers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...common.units import size_text
from ..gguf.shards import GgufPlan
from ..gguf.tensor_plan import TensorPlan
from ..gguf.values import Value, text, u32, u64
from ..gguf.writer import POWERINFER_MAGIC

SUFFIX = ".generated.gpuidx"
ARCHITECTURE = "generic.gpu_index"
GROUP = 256
_KV_TOKENS = 512  # PowerInfer's default context
_INDEX_BYTES = 4
Counts = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class GpuSplit:
    """The neurons of each layer that go to the GPU."""

    chosen: list[npt.NDArray[np.int64]]
    """By layer: their rows in the file, ascending."""
    required_bytes: int
    """The memory that they take on the GPU."""
    share: float
    """How much of all activations they make, 0 to 1."""

    @property
    def neurons(self) -> int:
        """How many, in all layers."""
        return sum(map(len, self.chosen))


def solve_split(counts: Sequence[Counts], neuron_bytes: Sequence[int], budget_bytes: int) -> GpuSplit:
    """Choose the neurons whose activations are most, within a budget.

    Args:
        counts: by layer, how often each neuron [F] fired, in the file's order.
        neuron_bytes: by layer, what one neuron takes on the GPU.
        budget_bytes: what all may take.

    Returns:
        The neurons; whole groups of 256, the last of a layer what is left.

    Raises:
        TsconvertError: the solver found no solution in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    orders = [np.argsort(-np.asarray(count_F, np.float64), kind="stable") for count_F in counts]
    groups = [
        (layer, order_F[start : start + GROUP])
        for layer, order_F in enumerate(orders)
        for start in range(0, len(order_F), GROUP)
    ]
    value = np.array([float(np.asarray(counts[layer])[rows].sum()) for layer, rows in groups])
    cost = np.array([len(rows) * neuron_bytes[layer] for layer, rows in groups], np.float64)
    unit = max(1.0, float(cost.max(initial=1.0)))
    hotter = _hotter_first([layer for layer, _ in groups])
    limits = np.array([budget_bytes / unit] + [0.0] * len(hotter))
    found = milp(
        -value / max(1.0, float(value.max(initial=1.0))),
        integrality=np.ones(len(groups)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(csr_array(np.vstack([cost[None, :] / unit, hotter])), -np.inf, limits),
        options={"time_limit": 50, "mip_rel_gap": 1e-5},
    )
    if found.x is None:
        raise TsconvertError(f"--vram: the solver found no split ({found.message}); give another size")
    taken = found.x > 0.5
    rows_of: list[list[npt.NDArray[np.int64]]] = [[np.empty(0, np.int64)] for _ in counts]
    for (layer, rows), on_gpu in zip(groups, taken, strict=True):
        rows_of[layer] += [rows] if on_gpu else []
    return GpuSplit(
        chosen=[np.sort(np.concatenate(rows)) for rows in rows_of],
        required_bytes=int(cost[taken].sum()),
        share=float(value[taken].sum() / max(value.sum(), 1e-30)),
    )


def _hotter_first(layer_of: Sequence[int]) -> npt.NDArray[np.float64]:
    """Constraints: no last group of a layer, which may be a small one, without the group before it."""
    ends = [at for at in range(1, len(layer_of)) if layer_of[at] not in layer_of[at + 1 :]]
    last = [at for at in ends if layer_of[at] == layer_of[at - 1]]
    rows = np.zeros((len(last), len(layer_of)))
    rows[range(len(last)), last] = 1
    rows[range(len(last)), [at - 1 for at in last]] = -1
    return rows


def plan_split(
    tensors: Sequence[TensorPlan], counts: Sequence[Counts] | None, vram_bytes: int, kv_width: int, out: Path
) -> tuple[GgufPlan, str]:
    """The split file beside a PowerInfer file, and a note that says what it does.

    PowerInfer puts norms, attention, predictors and the head on the GPU first, then the KV cache, and FFN rows only if
    all of those fit.

    Args:
        tensors: those of the PowerInfer file.
        counts: by layer, how often each neuron fired, in the file's order.
        vram_bytes: what the whole model may take on the GPU.
        kv_width: numbers of one token's keys in one layer.
        out: the PowerInfer file.

    Raises:
        TsconvertError: a type that PowerInfer's GPU kernels do not take, no counts, or memory that does not even hold
            what comes before the FFN rows.
    """
    ffn = [tensor for tensor in tensors if re.search(r"\.ffn_(gate|up|down_t)\.", tensor.name)]
    for tensor in ffn:
        if tensor.type_name not in ("F16", "Q4_0"):
            raise TsconvertError(
                f"{tensor.name}: PowerInfer's GPU kernels take F16 and Q4_0, not {tensor.type_name}; choose one of"
                " those with --vram"
            )
    if counts is None:
        raise TsconvertError("--vram needs to know how often neurons fire; give --profile")
    layers = len(counts)
    sizes = {tensor.name: tensor.size_bytes for tensor in tensors}
    rows = {tensor.name for tensor in ffn}
    before = sum(size for name, size in sizes.items() if name not in rows and not name.startswith("token_embd"))
    before += 2 * 2 * kv_width * layers * _KV_TOKENS  # keys and values, F16
    if before > vram_bytes:
        raise TsconvertError(
            f"--vram {size_text(vram_bytes)}: attention, predictors, head and {_KV_TOKENS} tokens of KV cache take"
            f" {size_text(before)} on the GPU before any FFN row; give at least that"
        )
    neuron_bytes = [
        sum(sizes[name] for name in rows if name.startswith(f"blk.{layer}.")) // len(counts[layer]) + 2 * _INDEX_BYTES
        for layer in range(layers)
    ]
    split = solve_split(counts, neuron_bytes, vram_bytes - before)
    note = (
        f"GPU split for {size_text(vram_bytes)}: {split.neurons} of {sum(map(len, counts))} neurons"
        f" ({size_text(split.required_bytes)}) that make {split.share:.1%} of the activations, in the file with"
        f" {SUFFIX} at its end; PowerInfer takes it with --vram-budget {vram_bytes / 2**30:.9g}"
    )
    return split_file(split, [len(count_F) for count_F in counts], out.with_name(out.name + SUFFIX)), note


def split_file(split: GpuSplit, neurons: Sequence[int], path: Path) -> GgufPlan:
    """The split in PowerInfer's form: per layer `gpu_idx`, 1 for a neuron on the GPU, and `gpu_bucket`, their rows."""
    metadata: dict[str, Value] = {
        "general.architecture": text(ARCHITECTURE),
        f"{ARCHITECTURE}.block_count": u32(len(neurons)),
        "split.vram_capacity": u64(split.required_bytes),
    }
    tensors = []
    for layer, (rows, count) in enumerate(zip(split.chosen, neurons, strict=True)):
        on_gpu = np.zeros(count)
        on_gpu[rows] = 1
        tensors.append(TensorPlan.of(f"blk.{layer}.gpu_idx", on_gpu, "I32"))
        tensors.append(TensorPlan.of(f"blk.{layer}.gpu_bucket", rows, "I32"))
    return GgufPlan(path=path, metadata=metadata, tensors=tensors, magic=POWERINFER_MAGIC)
