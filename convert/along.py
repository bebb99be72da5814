"""What may be trained along with each layer of a recovery: predictors, whose mask the layer learns to live with."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from ..model.layers import Layer
    from ..model.sweep import Stream
    from .local.layer_data import LayerData

# Shape suffixes: T tokens, D model width, F neurons.


class Along(Protocol):
    """Trained along: start once; for each layer begin, mask and learn once a step, end, feed_forward; finish."""

    share: float
    """Of a layer's steps, the last ones, those that are taken with the mask."""

    def start(self, stream: "Stream", held: slice) -> None:
        """The student's stream, before its first layer; the sequences ``held`` are not trained on."""

    def begin(self, layer: "Layer", data: "LayerData", seed: int) -> None:
        """The layer has been trained without a mask so far."""

    def mask(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """Which neurons of the FFN are computed for these normed inputs, [T, F]; the others count as silent."""

    def learn(self, expert: int, x_TD: torch.Tensor) -> None:
        """Take a step of its own on the same inputs."""

    def end(self, layer: "Layer", data: "LayerData", folder: Path) -> None:
        """The layer is trained and rounded as it will be written; keep what belongs to it, for a resumed run."""

    def feed_forward(self, stream: "Stream", layer: "Layer") -> None:
        """Push the stream through the layer's FFN half with the mask."""

    def restore(self, layer: int, folder: Path) -> None:
        """Read back what `end` kept of a layer that an earlier run finished; `feed_forward` follows."""

    def finish(self, folder: Path) -> None:
        """The checkpoint in ``folder`` is whole, in process 0."""
