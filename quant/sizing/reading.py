"""The share of each tensor's bytes that a token reads: attention and predictors whole, an FFN's rows if they fire."""

from collections.abc import Sequence

from ...common.errors import TsconvertError
from ..gguf.tensor_plan import TensorPlan
from ..targets.separate_predictors import is_predictor


def read_shares(
    tensors: Sequence[TensorPlan],
    *,
    sparse: bool,
    density: float | None,
    experts_read: float,
    attention_share: float = 1.0,
) -> dict[str, float]:
    """Tensor -> share, where it is not 1.

    Args:
        sparse: neurons that are silent are not read: in exact mode up and down, with predictors the gate too.
        density: the share of the neurons that are read.
        experts_read: the share of the experts that a token goes to.
        attention_share: the share of `attn_output_t` that predicted mode reads.

    Raises:
        TsconvertError: the density is not known.
    """
    if sparse and density is None:
        raise TsconvertError(
            "--target-bytes-a-token: how many neurons a token reads is not known; give --density, such as 0.12"
        )
    names = {tensor.name: tensor for tensor in tensors}
    rows_read = ("ffn_up", "ffn_down", "ffn_gate") if any(map(is_predictor, names)) else ("ffn_up", "ffn_down")
    found = {}
    for name, tensor in names.items():
        share = experts_read if "_exps." in name else 1.0
        if name == "token_embd.weight" and "output.weight" in names:
            share = 1 / tensor.shape[0]
        elif name.endswith("ffn_order"):
            share = 0.0
        elif "attn_output_t" in name:
            share = attention_share
        elif sparse and not is_predictor(name) and "_norm" not in name and any(part in name for part in rows_read):
            share *= density or 0.0
        found[name] = share
    return found
