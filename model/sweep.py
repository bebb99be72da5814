"""The layer sweep: all calibration tokens through the model, one decoder layer at a time.

Memory is one layer's weights plus the hidden states, whatever the model's size. Code that needs activations is a
visitor; local recovery drives two streams of its own. Under torchrun each process sweeps its own sequences.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from ..common import processes
from ..common.files import reserve
from ..common.progress import progress
from .checkpoint import Checkpoint
from .layers import Layer, Stack, read_tensor
from .spec import ModelSpec
from .tensor_names import Place

BATCH_TOKENS = 8192
_BATCH_ELEMENTS = 2**25  # of the FFN's activations
IN_MEMORY_BYTES = 2**31


def batch_tokens(spec: ModelSpec) -> int:
    """The number of tokens that go through a layer together: fewer where its FFN is wide."""
    return min(BATCH_TOKENS, _BATCH_ELEMENTS // spec.neurons)


class Stream:
    """The hidden states of all calibration tokens on their way through a model.

    Args:
        checkpoint: the model.
        rows_NS: token ids of this process.
        device: where layers compute; the hidden states stay in memory, or in a mapped temporary file above 2 GiB.
        activation: the FFN's, where it differs from the checkpoint's.
        scratch: the folder of that temporary file.
        autocast: matrix products in bfloat16, as recovery's training does them; the hidden states stay float32.
        frozen: no layer will be trained or written; under autocast its matrices then take half the memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows_NS: torch.Tensor,
        device: str | torch.device = "cpu",
        *,
        activation: str | None = None,
        scratch: Path | None = None,
        autocast: bool = False,
        frozen: bool = False,
    ) -> None:
        self.autocast, self.scratch = autocast, scratch
        self.checkpoint, self.rows_NS, self.device = checkpoint, rows_NS, torch.device(device)
        checkpoint.require_finite()
        matrices = torch.bfloat16 if frozen and autocast else torch.float32
        self.stack = Stack(checkpoint, self.device, activation, matrices)
        self.hidden_NSD = token_buffer((*rows_NS.shape, checkpoint.spec.width), scratch)
        for part in self.batches():
            self.hidden_NSD[part] = self.stack.embed(rows_NS[part])

    @property
    def context(self) -> int:
        """Tokens a sequence."""
        return int(self.rows_NS.shape[1])

    def batches(self) -> Iterator[slice]:
        """Slices over sequences, of about `batch_tokens` tokens."""
        step = max(1, batch_tokens(self.checkpoint.spec) // self.context)
        for start in range(0, self.rows_NS.shape[0], step):
            yield slice(start, start + step)

    def layer(self, index: int) -> Layer:
        """Layer ``index`` with its weights; those of the next one are being read ahead when this returns."""
        layer = self.stack.build(index, self.context)
        self.checkpoint.prefetch(index + 1)
        return layer

    def precision(self) -> torch.autocast:
        """The autocast context of matrix products."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    @torch.no_grad()
    def attend(self, layer: Layer) -> None:
        """Push the hidden states through the attention half."""
        for part in self.batches():
            with self.precision():
                residual_NSD, _ = layer.attend(self.hidden_NSD[part].to(self.device))
            self.hidden_NSD[part] = residual_NSD.cpu()

    @torch.no_grad()
    def contexts(self, layer: Layer) -> torch.Tensor:
        """The inputs [N, S, C] of the attention's output projection; the hidden states do not change."""
        spec = self.checkpoint.spec
        context_NSC = token_buffer((*self.rows_NS.shape, spec.heads * spec.head_dim), self.scratch)
        for part in self.batches():
            with self.precision():
                _, kept_NSC = layer.attend(self.hidden_NSD[part].to(self.device))
            context_NSC[part] = kept_NSC.cpu()
        return context_NSC

    @torch.no_grad()
    def inputs(self, layer: Layer) -> Iterator[torch.Tensor]:
        """After `attend`: the FFN's normed inputs, batch by batch, each [T, D]."""
        for part in self.batches():
            yield layer.norm(self.hidden_NSD[part].to(self.device)).flatten(0, 1)

    @torch.no_grad()
    def feed_forward(self, layer: Layer) -> None:
        """Push the hidden states through the FFN half."""
        for part in self.batches():
            residual_NSD = self.hidden_NSD[part].to(self.device)
            with self.precision():
                out_TD = layer.ffn(layer.norm(residual_NSD).flatten(0, 1))
            self.hidden_NSD[part] = (residual_NSD + out_TD.view_as(residual_NSD)).cpu()

    @torch.no_grad()
    def logits(self, sequences: slice) -> Iterator[torch.Tensor]:
        """After the last layer: the logits [S, V] of each of ``sequences``."""
        head_VD = self.head()
        for hidden_SD in self.hidden_NSD[sequences]:
            yield self.predict(hidden_SD, head_VD)

    def head(self) -> torch.Tensor:
        """The matrix [V, D] that makes logits."""
        return read_tensor(self.checkpoint, Place("token_embd" if self.checkpoint.spec.tied else "output"))

    def predict(self, hidden_SD: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
        """The logits [S, V] that `head` makes of hidden states after the last layer."""
        spec = self.checkpoint.spec
        logits_SV = torch.nn.functional.linear(self.stack.norm(hidden_SD), head_VD)
        if spec.logit_scale != 1:
            logits_SV = logits_SV * spec.logit_scale
        return logits_SV if not spec.logit_softcap else spec.logit_softcap * (logits_SV / spec.logit_softcap).tanh()

    def cross_entropy(self, sequences: slice) -> float:
        """After the last layer: mean next-token loss, in nats, over the ``sequences`` of all processes."""
        total, count = 0.0, 0.0
        for logits_SV, row_S in zip(self.logits(sequences), self.rows_NS[sequences], strict=True):
            total += float(torch.nn.functional.cross_entropy(logits_SV[:-1], row_S[1:], reduction="sum"))
            count += len(row_S) - 1
        total, count = processes.sums(total, count)
        return total / count


class Visitor(Protocol):
    """Code that looks at a model's activations during a sweep."""

    def visit(self, layer: Layer, stream: Stream) -> str:
        """Called with the stream between the two halves of ``layer``: `stream.inputs(layer)` gives the FFN's inputs.

        Returns:
            A few words for the progress line.
        """


@runtime_checkable
class EarlyVisitor(Visitor, Protocol):
    """A visitor that also sees the inputs of attention."""

    def before(self, layer: Layer, stream: Stream) -> None:
        """Called before the attention half of ``layer``; the hidden states are its input, and hooks may be added."""


def sweep(checkpoint: Checkpoint, rows_NS: torch.Tensor, visitors: Sequence[Visitor], device: str = "cpu") -> Stream:
    """Push ``rows_NS`` through every layer of ``checkpoint``, and call each visitor at each layer."""
    stream = Stream(checkpoint, rows_NS, device)
    with progress("layers", checkpoint.spec.layers) as step:
        for index in range(checkpoint.spec.layers):
            layer = stream.layer(index)
            for visitor in visitors:
                if isinstance(visitor, EarlyVisitor):
                    visitor.before(layer, stream)
            stream.attend(layer)
            said = [visitor.visit(layer, stream) for visitor in visitors]
            stream.feed_forward(layer)
            del layer  # before the next one is read
            step(", ".join(words for words in said if words))
    return stream


def token_buffer(shape: tuple[int, ...], scratch: Path | None) -> torch.Tensor:
    """An uninitialized float32 tensor: in memory, or above 2 GiB in a mapped temporary file in ``scratch``."""
    size_bytes = int(np.prod(shape, dtype=np.int64)) * 4
    if size_bytes <= IN_MEMORY_BYTES:
        return torch.empty(shape)
    with tempfile.NamedTemporaryFile(dir=scratch, prefix="tsconvert-hidden-") as file:
        reserve(file, size_bytes)  # a mapped file that the disk has no room for ends the process
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
