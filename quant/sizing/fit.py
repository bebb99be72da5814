"""Types for a size: what each type would do to each matrix is measured, and the best choice that fits is taken.

What a matrix adds to the divergence is its slopes (imatrix/slopes.py) times its rounding errors (errors.py), and what
all add is about the sum. Bytes are those of the file, or those that a token reads. A mix that comes to the size is kept
to where nothing else is expected to be closer by a tenth: sums are not truer than that.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...common.machine.threads import cores
from ...common.progress import progress
from ...common.units import size_text
from ...model.files.gguf import ggml
from ..config import TypesConfig
from ..gguf.tensor_plan import TensorPlan
from ..gguf.writer import padded
from ..imatrix.file import ImportanceMatrix
from ..types.mixes import fitting_type
from ..types.type_choice import TypeChoice, known_type
from .errors import divergence
from .knapsack import choose
from .mix_sizes import mix_types
from .recipe import Recipe, read_recipe

_FAST = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")
CANDIDATES = {"llama.cpp": _FAST, "sparse": ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q4_0", "Q5_0", "Q8_0", "F16")}
"""Engine -> types that it computes fast and that are encoded fast."""
_NARROW = (
    "IQ4_NL"  # better than Q4_0 and as small; a K-quant is better still where it fits, and 30 times faster to make
)
_LESS = 0.995  # share of the size from which on a mix comes to it
_GAIN = 0.9  # times the mix's divergence that another choice has to be expected to have


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What is to be spent, and what each tensor costs."""

    asked: str
    total: float
    """Bytes for all tensors."""
    shares: Mapping[str, float]
    """Tensor -> how many times its bytes count; once where it is not named."""
    padding: bool

    def cost(self, tensor: TensorPlan, type_name: str) -> float:
        """The bytes that ``tensor`` costs as ``type_name``."""
        rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
        size = rows * ggml.row_bytes(type_name, tensor.shape[-1])
        return (padded(size) if self.padding else size) * self.shares.get(tensor.name, 1.0)


def chosen_types(
    config: TypesConfig, tensors: Sequence[TensorPlan], matrices: Sequence[str], types: TypeChoice,
    matrix: ImportanceMatrix | None, *, header_bytes: int, engine: str, shares: Mapping[str, float],
    stored: Mapping[str, str] | None = None,
) -> Recipe:  # fmt: skip
    """The types that ``config``'s size or recipe gives to ``matrices``.

    Args:
        tensors: all of the file's, with the types of those that are not to be chosen.
        types: what the user named goes before the size.
        header_bytes: of a file without a recipe.
        shares: tensor -> the share of its bytes that a token reads.
        stored: the quantized type that a matrix has already, and can keep without an error.

    Raises:
        TsconvertError: as `fit`, or the recipe is of another model.
    """
    if config.recipe is None:
        free = [name for name in matrices if not types.is_fixed(name)]
        named = {tensor.name: tensor for tensor in tensors}
        rivals = mix_types(named, matrices, types.model) if types.model is not None else {}
        budget = _budget(config, tensors, header_bytes, shares)
        return fit(tensors, free, matrix, budget, config, engine, stored, rivals)
    found, shapes = read_recipe(config.recipe), {tensor.name: tensor.shape for tensor in tensors}
    for name in matrices:
        if fitting_type(found.get(name, "F32"), shapes[name][-1]) != found.get(name):
            raise TsconvertError(f"{config.recipe}: has no type for {name}; give the recipe of a model of this shape")
    return Recipe(asked=f"--recipe {config.recipe}", types={name: found[name] for name in matrices}, losses={})


def _budget(
    config: TypesConfig, tensors: Sequence[TensorPlan], header_bytes: int, shares: Mapping[str, float]
) -> Budget:
    """What ``config`` asks for, of a file with a header of ``header_bytes``.

    The recipe, some KB in the header, comes on top: else no choice could be a mix at the mix's own size.
    """
    if config.target_bytes is not None:
        total = config.target_bytes - header_bytes
        return Budget(asked=f"--target-size {config.target_bytes}", total=total, shares={}, padding=True)
    if config.target_bits is not None:
        weights = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors)
        asked = f"--target-bits {config.target_bits:g}"
        return Budget(asked=asked, total=weights * config.target_bits / 8, shares={}, padding=False)
    assert config.target_token_bytes is not None
    asked = f"--target-bytes-a-token {config.target_token_bytes}"
    return Budget(asked=asked, total=config.target_token_bytes, shares=shares, padding=False)


def fit(
    tensors: Sequence[TensorPlan], free: Sequence[str], matrix: ImportanceMatrix | None, wanted: Budget,
    config: TypesConfig, engine: str, stored: Mapping[str, str] | None = None,
    rivals: Mapping[str, Mapping[str, str]] | None = None,
) -> Recipe:  # fmt: skip
    """Choose the types of the matrices ``free`` among ``tensors``; the others keep theirs.

    Args:
        matrix: has slopes.
        stored: the quantized type that a matrix has already, and can keep without an error.
        rivals: mixes, and the types that they give to ``free``.

    Raises:
        TsconvertError: slopes are of another model, or even the smallest types exceed the size.
    """
    names, stored, rivals = set(free), stored or {}, rivals or {}
    chosen = [tensor for tensor in tensors if tensor.name in names]
    assert matrix is not None, "with_slopes"
    tried = {tensor.name: _candidates(tensor, config, engine, stored.get(tensor.name)) for tensor in chosen}
    losses = _losses(chosen, tried, matrix, config.threads, stored)
    fixed = sum(wanted.cost(tensor, tensor.type_name) for tensor in tensors if tensor.name not in names)
    costs = [np.array([wanted.cost(tensor, kind) for kind in tried[tensor.name]]) for tensor in chosen]
    found = choose(costs, [np.array(losses[tensor.name]) for tensor in chosen], wanted.total - fixed)
    least = sum(float(cost.min()) for cost in costs)
    if found is None:
        raise TsconvertError(
            f"{wanted.asked}: the smallest types make it {size_text(least + fixed)} of tensors, and there is room for"
            f" {size_text(max(0.0, wanted.total))}; ask for more, or give smaller types with --candidate"
        )
    note = ""
    if mix := _better_mix(rivals, tried, losses, costs, found, wanted.total - fixed):
        found = [kinds.index(rivals[mix][name]) for name, kinds in tried.items()]
        note = f"{wanted.asked}: these are the types of {mix}; no others of this size are expected to do much better"
    spent = fixed + sum(float(cost[k]) for cost, k in zip(costs, found, strict=True))
    if spent < 0.995 * wanted.total and not note:
        note = f"{wanted.asked}: the largest types make it {size_text(spent)} of tensors, less than was asked for"
    return Recipe(
        asked=wanted.asked, note=note,
        types={tensor.name: tried[tensor.name][k] for tensor, k in zip(chosen, found, strict=True)},
        losses={name: dict(zip(kinds, losses[name], strict=True)) for name, kinds in tried.items()},
    )  # fmt: skip


def _better_mix(
    rivals: Mapping[str, Mapping[str, str]], tried: Mapping[str, Sequence[str]], losses: Mapping[str, Sequence[float]],
    costs: Sequence[npt.NDArray[np.float64]], found: Sequence[int], budget: float,
) -> str | None:  # fmt: skip
    """The mix that comes to the budget, if ``found`` is not expected to be better by enough."""
    most = sum(losses[name][k] for name, k in zip(tried, found, strict=True)) / _GAIN
    fitting: dict[str, float] = {}
    for mix, types in rivals.items():
        if all(types[name] in kinds for name, kinds in tried.items()):
            numbers = [kinds.index(types[name]) for name, kinds in tried.items()]
            spent = sum(float(cost[k]) for cost, k in zip(costs, numbers, strict=True))
            lost = sum(losses[name][k] for name, k in zip(tried, numbers, strict=True))
            if _LESS * budget <= spent <= budget and lost <= most:
                fitting[mix] = lost
    return min(fitting, key=lambda mix: fitting[mix], default=None)


def _candidates(tensor: TensorPlan, config: TypesConfig, engine: str, stored: str | None) -> list[str]:
    columns = tensor.shape[-1]
    named = [known_type(name) for name in config.candidates]
    wide = columns % ggml.TYPES["Q4_K"].weights == 0
    kinds = named or [*CANDIDATES[engine], *(() if wide or engine != "llama.cpp" else (_NARROW,))]
    fitting = [kind for kind in dict.fromkeys(kinds) if columns % ggml.TYPES[kind].weights == 0] or ["F16"]
    return [*fitting, *([stored] if stored is not None and stored not in fitting else [])]


def _losses(
    tensors: Sequence[TensorPlan], tried: Mapping[str, Sequence[str]], matrix: ImportanceMatrix, threads: int | None,
    stored: Mapping[str, str],
) -> dict[str, list[float]]:  # fmt: skip
    present = {tensor.name for tensor in tensors}

    def measure(tensor: TensorPlan) -> list[float]:
        slopes_EC = matrix.slopes_for(tensor.name, tensor.shape, present)
        kinds = tried[tensor.name]
        found = divergence(tensor, slopes_EC, matrix.by_slopes(tensor.name, tensor.shape), kinds)
        return [0.0 if stored.get(tensor.name) == kind else loss for kind, loss in zip(kinds, found, strict=True)]

    with progress("errors of types", len(tensors)) as step, ThreadPoolExecutor(threads or cores()) as pool:
        found = {}
        for tensor, losses in zip(tensors, pool.map(measure, tensors), strict=True):
            found[tensor.name] = losses
            step(tensor.name)
    return found
