"""What the training of one layer is given."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..model.layers import Layer

# Shape suffixes: T tokens, D model width, C attention context.
_BLOCK_TOKENS = 2048


@dataclass
class LayerData:
    """The student's way into the layer and the teacher's way out of it, for all tokens of this process."""

    x_TD: torch.Tensor
    """The student's hidden states before the layer."""
    context_TC: torch.Tensor
    """What its attention's output projection is given."""
    target_TD: torch.Tensor
    """The teacher's hidden states after the layer."""
    train_tokens: int
    """The first so many tokens are trained on, the rest judge."""
    first_token: int
    """Where this process's training tokens begin among those of all processes."""
    all_train_tokens: int
    """The count over all processes."""

    @property
    def train(self) -> slice:
        """The tokens that are trained on."""
        return slice(0, self.train_tokens)

    @property
    def held(self) -> slice:
        """The tokens that judge."""
        return slice(self.train_tokens, len(self.x_TD))

    def residual(self, layer: Layer, part: slice | torch.Tensor) -> torch.Tensor:
        """The student's residual stream [T, D] between the layer's halves, of a slice of the tokens or some of them."""
        context_TC = self.context_TC[part].to(layer.device)
        residual_TD: torch.Tensor = self.x_TD[part].to(layer.device) + layer.module.self_attn.o_proj(context_TC)
        return residual_TD

    @torch.no_grad()
    def ffn_inputs(self, layer: Layer, tokens: slice) -> Iterator[torch.Tensor]:
        """The FFN's normed inputs for some tokens, block by block."""
        for part in blocks(tokens):
            yield layer.norm(self.residual(layer, part))


def blocks(tokens: slice) -> Iterator[slice]:
    """A range of tokens in blocks that need little memory."""
    for first in range(tokens.start, tokens.stop, _BLOCK_TOKENS):
        yield slice(first, min(first + _BLOCK_TOKENS, tokens.stop))
