"""What every mix makes of a file: its types, and how large it would be."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...common.errors import TsconvertError
from ..gguf.tensor_plan import TensorPlan
from ..gguf.writer import padded
from ..types import mixes
from ..types.type_choice import TypeChoice


def mix_sizes(
    tensors: Sequence[TensorPlan], matrices: Sequence[str], model: mixes.Model, other_bytes: int
) -> dict[str, int]:
    """Bytes of the file by mix, the largest first.

    Args:
        matrices: those of ``tensors`` that a mix quantizes, in the order in which llama-quantize goes through them.
        other_bytes: of the header.
    """
    named = {tensor.name: tensor for tensor in tensors}
    other_bytes += sum(padded(tensor.size_bytes) for tensor in tensors if tensor.name not in set(matrices))
    found = {}
    for mix, kinds in mix_types(named, matrices, model).items():
        sizes = [replace(named[name], type_name=kind).size_bytes for name, kind in kinds.items()]
        found[mix] = other_bytes + sum(map(padded, sizes))
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def mix_types(
    tensors: Mapping[str, TensorPlan], matrices: Sequence[str], model: mixes.Model
) -> dict[str, dict[str, str]]:
    """The types of ``matrices`` by mix; arguments as of `mix_sizes`, the tensors by name."""
    found = {}
    for mix in mixes.MIXES:
        try:
            found[mix] = _kinds(mix, matrices, tensors, model)
        except TsconvertError:  # with an importance matrix only
            found[mix] = _kinds(mix, matrices, tensors, replace(model, importance=True))
    return found


def _kinds(mix: str, matrices: Sequence[str], named: Mapping[str, TensorPlan], model: mixes.Model) -> dict[str, str]:
    types = TypeChoice(mix, "F16", (), model)
    return {name: types.matrix(name, named[name].shape[-1]) for name in matrices}
