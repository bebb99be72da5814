"""Slopes: what errors in each matrix cost at the output, in nats of KL divergence a token, for `--target-size`.

To second order a change dW of one matrix moves the predictions by KL = 1/2 E[(sum_ij G_ij dW_ij)^2], where G is the
gradient of -ln p(y) and y is drawn from the model's own predictions: the Fisher information (Martens, 1412.1193, 9.2).
G is a sum over tokens of g_i x_j, what comes back to the matrix's outputs times what its inputs are. Rounding errors
have no direction, so of the square the diagonal remains; and a block's error grows with its weights:

    KL = sum_j slope_j * error_j, where error_j = mean_i(dW_ij^2) / mean(W^2)
    slope_j = 1/2 * mean over tokens of |g|^2 x_j^2 * mean(W^2), whose rows weigh as much as their sum of g_i^2 |x|^2

Being of relative errors, slopes do not change with scales that an engine folds into weights. The keys and values of
many tokens are read together, so there g and x of a sequence's tokens are multiplied and summed before they are
squared. An embedding is read a row a token: there g_j^2 alone counts; one that is the head as well has both. On
tiny-mistral the measured KL is 0.97 to 1.1 times what this says for FFNs, and 1.05 times for all matrices together.

One sweep forward, which keeps what each layer is given, and one back, a layer's weights in memory at a time. Both are
journalled in a folder, so that a killed run goes on where it was, and gives the same bytes.

Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, C columns, R rows, E experts, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch.nn.functional import cross_entropy, linear
from torch.overrides import TorchFunctionMode

from ...common.files import reserve
from ...common.progress import progress
from ...model.checkpoint import Checkpoint
from ...model.files.journal import JOURNAL, Journal
from ...model.layers import Layer
from ...model.sweep import Stream
from ...model.tensor_names import BIASED, FFN, Place, gguf_name

Slopes = Mapping[str, npt.NDArray[np.float32]]
"""GGUF name of a matrix -> [E, C]."""
_HEAD_TOKENS = 64  # whose logits, and the gradients of these, are in memory at a time


def measure_slopes(
    checkpoint: Checkpoint, rows_NS: torch.Tensor, folder: Path, *, seed: int = 0, device: str = "cpu"
) -> Slopes:
    """The slopes of every matrix of ``checkpoint`` on the text ``rows_NS``.

    Args:
        folder: for the journal and what lies between the two sweeps; a run that finds its own there goes on.

    Raises:
        TsconvertError: what lies in ``folder`` is of another run, or a weight is not finite.
    """
    return _Sweeps(checkpoint, rows_NS, folder, seed, device).run()


class _Sweeps:
    def __init__(self, checkpoint: Checkpoint, rows_NS: torch.Tensor, folder: Path, seed: int, device: str) -> None:
        self.spec, self.folder, self.seed = checkpoint.spec, folder, seed
        read = blake3.blake3(rows_NS.numpy().tobytes()).hexdigest()
        head = {"model": checkpoint.fingerprint, "seed": seed, "shape": list(rows_NS.shape), "text": read}
        self.journal = Journal(folder / JOURNAL, head)
        self.stream = Stream(checkpoint, rows_NS, device)
        states = (self.spec.layers + 1, *rows_NS.shape, self.spec.width)
        self.states_LNSD = _mapped(folder / "states", states)
        self.back_2NSD = _mapped(folder / "gradients", (2, *states[1:]))  # one is read while the other is written

    def run(self) -> Slopes:
        layers = self.spec.layers
        with progress("slopes", 2 * layers + 1) as step:
            for index in range(layers):
                self._once(index, self._forward)
                step(f"forward {index + 1}")
            self._once(layers, self._head)
            step("head")
            for index in reversed(range(layers)):
                self._once(2 * layers - index, partial(self._backward, index))
                step(f"back to {index}")
        found: dict[str, npt.NDArray[np.float32]] = {}
        for number in range(layers, 2 * layers + 1):
            for name, slopes_EC in load_file(self._kept(number)).items():
                found[name] = found[name] + slopes_EC if name in found else slopes_EC
        return found

    def _once(self, number: int, work: Any) -> None:
        """Do a stage that the journal does not have."""
        if self.journal.entry(number) is None:
            work(number)
            for states in (self.states_LNSD, self.back_2NSD):
                states.flush()
            self.journal.add(number, {})

    def _kept(self, number: int) -> Path:
        return self.folder / f"slopes-{number:05}.safetensors"

    def _forward(self, index: int) -> None:
        stream = self.stream
        if index == 0:
            self.states_LNSD[0] = stream.hidden_NSD.numpy()
        layer = stream.layer(index)
        stream.hidden_NSD = torch.from_numpy(np.array(self.states_LNSD[index]))
        stream.attend(layer)
        stream.feed_forward(layer)
        self.states_LNSD[index + 1] = stream.hidden_NSD.numpy()

    def _head(self, number: int) -> None:
        """The gradients of the last hidden states, and the head's slopes."""
        head_VD = self.stream.head().to(self.stream.device)
        name = gguf_name(Place("token_embd" if self.spec.tied else "output"))
        sums = _Sums({head_VD.data_ptr(): [(name, 0, slice(None))]})
        for sequence, hidden_SD in enumerate(self.states_LNSD[-1]):
            draw = torch.Generator().manual_seed(self.seed * len(self.states_LNSD[-1]) + sequence)
            for start in range(0, len(hidden_SD), _HEAD_TOKENS):
                part = slice(start, start + _HEAD_TOKENS)
                x_TD = torch.from_numpy(np.array(hidden_SD[part])).to(self.stream.device).requires_grad_()
                with sums:
                    logits_TV = self.stream.predict(x_TD, head_VD)
                drawn_T = torch.multinomial(logits_TV.detach().softmax(-1).cpu(), 1, generator=draw)[:, 0]
                cross_entropy(logits_TV, drawn_T.to(logits_TV.device), reduction="sum").backward()
                assert x_TD.grad is not None
                self.back_2NSD[self.spec.layers % 2, sequence, part] = x_TD.grad.cpu().numpy()
        self._save(number, sums, {(name, 0): head_VD})

    def _backward(self, index: int, number: int) -> None:
        """The gradients of what layer ``index`` is given, from those of what it gives, and its matrices' slopes."""
        layer = self.stream.layer(index)
        sums = _Sums(_matrices(layer))
        gradients_NSD, given_NSD = self.back_2NSD[(index + 1) % 2], self.back_2NSD[index % 2]
        for sequence, state_SD in enumerate(self.states_LNSD[index]):
            x_NSD = torch.from_numpy(np.array(state_SD))[None].to(self.stream.device).requires_grad_()
            with sums:
                middle_NSD, _ = layer.attend(x_NSD)
                out_NSD = middle_NSD + layer.ffn(layer.norm(middle_NSD).flatten(0, 1)).view_as(middle_NSD)
            out_NSD.backward(torch.from_numpy(np.array(gradients_NSD[sequence]))[None].to(out_NSD.device))
            assert x_NSD.grad is not None
            given_NSD[sequence] = x_NSD.grad[0].cpu().numpy()
        weights = {(name, expert): parameter.detach()[rows] for name, expert, parameter, rows in _parts(layer)}
        if index == 0:
            weights |= self._embedding(sums, given_NSD)
        self._save(number, sums, weights)

    def _embedding(self, sums: "_Sums", gradients_NSD: npt.NDArray[np.float32]) -> dict[tuple[str, int], torch.Tensor]:
        name = gguf_name(Place("token_embd"))
        ids, place_T = self.stream.rows_NS.flatten().unique(return_inverse=True)
        back_TD = torch.from_numpy(np.array(gradients_NSD)).flatten(0, 1) * self.spec.embedding_scale
        back_TD = back_TD.double().square()
        rows_I = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, place_T, back_TD.sum(1))
        sums.add(name, 0, back_TD.sum(0), rows_I)
        return {(name, 0): self.stream.stack.embed(ids[None])[0] / self.spec.embedding_scale}

    def _save(self, number: int, sums: "_Sums", weights: Mapping[tuple[str, int], torch.Tensor]) -> None:
        found: dict[str, npt.NDArray[np.float32]] = {}
        for (name, expert), weight_RC in weights.items():
            columns_C, rows_R = sums.of(name, expert, weight_RC.shape)
            parts = {name: (columns_C, rows_R, weight_RC)}
            for kind in ("ffn_down", "attn_output") if self.spec.sparse else ():  # as a sparse file may have them
                if kind in name:
                    parts[name.replace(kind, f"{kind}_t")] = rows_R, columns_C, weight_RC.T
            for each, (slope_C, by_row_R, matrix_RC) in parts.items():
                square_R = matrix_RC.float().square().mean(1).double().cpu()
                square = (by_row_R * square_R).sum() / by_row_R.sum().clamp_min(1e-300)
                experts = max(1, self.spec.experts) if "_exps" in name else 1
                stack_EC = found.setdefault(each, np.zeros((experts, len(slope_C)), np.float32))
                stack_EC[expert] = (slope_C * square / (2 * self.stream.rows_NS.numel())).numpy()
        save_file(found, self._kept(number))


class _Sums(TorchFunctionMode):
    """While it is entered, products with known matrices leave hooks that add up |g|^2 x_j^2 when gradients come back.

    Args:
        matrices: address of a matrix -> name, expert and rows of each part.
    """

    def __init__(self, matrices: Mapping[int, Sequence[tuple[str, int, slice]]]) -> None:
        super().__init__()
        self.matrices = matrices
        self._sums: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is linear and out.requires_grad and (parts := self.matrices.get(args[1].data_ptr())):
            out.register_hook(partial(self._seen, parts, args[0].detach().flatten(0, -2)))
        return out

    def _seen(self, parts: Sequence[tuple[str, int, slice]], x_TC: torch.Tensor, back: torch.Tensor) -> None:
        for name, expert, rows in parts:
            back_TR = back.detach().flatten(0, -2)[:, rows]
            if "attn_k" in name or "attn_v" in name:
                square_RC = (back_TR.T @ x_TC).square()
                self.add(name, expert, square_RC.sum(0), square_RC.sum(1))
            else:
                back_TR, seen_TC = back_TR.square(), x_TC.square()
                self.add(name, expert, back_TR.sum(1) @ seen_TC, seen_TC.sum(1) @ back_TR)

    def add(self, name: str, expert: int, columns_C: torch.Tensor, rows_R: torch.Tensor) -> None:
        """Count what came back once."""
        before_C, before_R = self._sums.get((name, expert), (0, 0))
        self._sums[name, expert] = before_C + columns_C.double().cpu(), before_R + rows_R.double().cpu()

    def of(self, name: str, expert: int, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums by column [C] and by row [R]; zero for an expert that no token reached."""
        zeros = torch.zeros(shape[1], dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
        return self._sums.get((name, expert), zeros)


def _parts(layer: Layer) -> list[tuple[str, int, torch.Tensor, slice]]:
    """Name, expert, the parameter that products are taken with, and the rows there, of each matrix of a layer."""
    found = []
    for role, place in layer.parameters.items():
        parameter = layer.module.get_parameter(place.path)
        if role in BIASED:
            found.append((gguf_name(Place(role, layer.index)), 0, parameter, place.rows or slice(None)))
    for expert in range(layer.experts):
        experts, neurons = layer.module.mlp.experts, layer.spec.neurons
        names = [gguf_name(Place(role, layer.index, expert)) for role in FFN]
        gate_up_FD = experts.gate_up_proj[expert]
        found += [
            (name, expert, gate_up_FD, slice(at, at + neurons)) for name, at in zip(names, (0, neurons), strict=False)
        ]
        found.append((names[2], expert, experts.down_proj[expert], slice(None)))
    return found


def _matrices(layer: Layer) -> dict[int, list[tuple[str, int, slice]]]:
    found: dict[int, list[tuple[str, int, slice]]] = {}
    for name, expert, parameter, rows in _parts(layer):
        found.setdefault(parameter.data_ptr(), []).append((name, expert, rows))
    return found


def _mapped(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.float32]]":
    size_bytes = int(np.prod(shape, dtype=np.int64)) * 4
    if not path.is_file() or path.stat().st_size != size_bytes:
        with path.open("wb") as stream:
            reserve(stream, size_bytes)
    return np.memmap(path, np.float32, "r+", shape=shape)
