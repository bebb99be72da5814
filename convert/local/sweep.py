"""The sweep that makes a dense model sparse: layer by layer aligned, recovered, written and journalled.

Two streams of hidden states run through it. The teacher's is the dense model's. The student's has been through the
recovered layers before this one, so each layer also learns to make good what those left over.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common import processes
from ...common.progress import progress
from ...model.checkpoint import Checkpoint
from ...model.files.dtypes import from_float32, to_float32
from ...model.files.journal import Journal
from ...model.files.writer import CheckpointWriter
from ...model.layers import Layer
from ...model.spec import THRESHOLDED, with_own_gate
from ...model.sweep import Stream
from ...model.tensor_names import UP_SCALE, Place, hf_name, shape_of
from ...text.sequences import Sequences
from ..alignment import SignAlignment, UpScales
from ..config import RelufyConfig
from ..layer_data import LayerData
from ..masked.layer_predictors import JointPredictors
from ..penalty import quantile
from ..report import LayerResult
from .layer_recovery import compared, expert_tokens, judge_layer, recover_layer
from .starved_experts import further_tokens, refuse_starved

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, F neurons.
JUDGE_SHARE = 16
"""One sequence in so many is kept from training and judges."""
_WIDEST = 100.0  # that a neuron's scale may be of the mean, or under it
_LOOKS = 512  # tokens that the first thresholds are taken of


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What the sweep found, as fields of RelufyReport."""

    tokens: int
    layers: tuple[LayerResult, ...]
    energy_kept: tuple[float, float] | None
    dense_perplexity: float
    perplexity: float


class RecoverySweep:
    """Aligns and recovers each layer of ``source``, and writes it when it is done.

    Args:
        source: the model that becomes sparse.
        teacher: the dense model.
        sequences: the calibration text.
        writer: of the output, in process 0 only.
        folder: where the output grows; the journal lies there too.
        predictors: trained with the layers; the student goes on under their mask.
    """

    def __init__(
        self, source: Checkpoint, teacher: Checkpoint, sequences: Sequences, config: RelufyConfig,
        writer: CheckpointWriter | None, folder: Path, journal: Journal | None,
        predictors: JointPredictors | None = None,
    ) -> None:  # fmt: skip
        self.predictors = predictors
        self.source, self.sequences, self.config = source, sequences, config
        self.writer, self.folder, self.journal = writer, folder, journal
        fresh = not source.spec.sparse
        self.align = config.align and config.activation == "drelu" and fresh
        self.scale = config.align and config.activation == "tswiglu" and fresh
        self.silence = config.activation == "tswiglu"
        how: dict[str, Any] = {
            "device": config.device, "scratch": config.out.parent, "autocast": bool(config.training.autocast)
        }  # fmt: skip
        # without a dense model a sparse one is compared with itself, without thresholds
        dense = THRESHOLDED.get(teacher.spec.activation, "swiglu") if teacher.spec.sparse else None
        self.teacher = Stream(teacher, sequences.rows_NS, frozen=True, activation=dense, **how)
        activation = with_own_gate(config.activation, source.spec.activation)
        self.student = Stream(source, sequences.rows_NS, activation=activation, **how)

    def run(self) -> SweepResult:
        """Sweep all layers.

        Raises:
            TsconvertError: a loss that is no number, or an expert that too few tokens reach. What is finished stays.
        """
        layers = self.source.spec.layers
        if self.predictors is not None:
            self.predictors.start(self.student, self.sequences.held)
        results: list[LayerResult] = []
        energies: list[tuple[float, float]] = []
        with progress("layers", layers) as step:
            for index in range(layers):
                self._teach(index)
                result, energy = self._layer(index)
                results.append(result)
                energies.append(energy)
                step(f"error {result.error_before:.3f} to {result.error_after:.3f}, density {result.density:.2f}")
        held = self.sequences.held
        return SweepResult(
            tokens=self.sequences.tokens,
            layers=tuple(results),
            energy_kept=(_mean([e[0] for e in energies]), _mean([e[1] for e in energies])) if self.align else None,
            dense_perplexity=float(np.exp(self.teacher.cross_entropy(held))),
            perplexity=float(np.exp(self.student.cross_entropy(held))),
        )

    def _teach(self, index: int) -> None:
        dense = self.teacher.layer(index)
        self.teacher.attend(dense)
        self.teacher.feed_forward(dense)

    def _layer(self, index: int) -> tuple[LayerResult, tuple[float, float]]:
        """Move the student through one layer, which is trained, or read back if an earlier run finished it."""
        layer = self.student.layer(index)
        entry = processes.broadcast(self.journal.entry(index) if self.journal else None)
        if entry is not None:
            self._restore(layer)
            if self.predictors is not None:
                self.predictors.restore(index, self.folder)
            earlier = {"threshold": layer.threshold, "up_threshold": layer.up_threshold}
            result = LayerResult(**earlier | entry["result"])
            layer.threshold, layer.up_threshold = result.threshold, result.up_threshold
            energy = (entry["energy"][0], entry["energy"][1])
        else:
            result, energy = self._train(layer)
        self.student.attend(layer)
        if self.predictors is not None:
            self.predictors.feed_forward(self.student, layer)
        else:
            self.student.feed_forward(layer)
        return result, energy

    def _train(self, layer: Layer) -> tuple[LayerResult, tuple[float, float]]:
        data = LayerData(
            x_TD=self.student.hidden_NSD.flatten(0, 1),
            context_TC=self.student.contexts(layer).flatten(0, 1),
            target_TD=self.teacher.hidden_NSD.flatten(0, 1),
            train_tokens=self.sequences.train_tokens,
            first_token=self.sequences.first_token,
            all_train_tokens=self.sequences.all_train_tokens,
        )
        energy = align(layer, data) if self.align else (0.0, 0.0)
        if self.scale:
            scale_ups(layer)
        if self.silence:
            layer.up_scale = up_scale(layer, data) if self.config.up_scaled else None
            first_thresholds(layer, data, self.config.training.target_sparsity or 0.0, self.config.training.ups)
        seen = expert_tokens(layer, data)
        least = self.config.min_expert_tokens
        if self.config.recover == "local":
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + layer.index)
            if self.source.spec.sparse:
                refuse_starved(layer, seen, least)
            further = further_tokens(layer, data, seen, least)
            result = recover_layer(layer, data, self.config.training, generator, seen, further, self.predictors)
        else:
            refuse_starved(layer, seen, least)
            result = judge_layer(layer, data, seen)
        self._write(layer)
        if self.predictors is not None:
            self.predictors.end(layer, data, self.folder)
        if self.journal is not None:
            self.journal.add(layer.index, {"result": asdict(result), "energy": energy})
        return result, energy

    @torch.no_grad()
    def _write(self, layer: Layer) -> None:
        """Write the layer, and round it to what was written: the layers after it are to learn from that."""
        for place, tensor in layer.tensors():
            dtype = "F32" if place.role == UP_SCALE else self.config.dtype or self.source.info(place).dtype
            raw = from_float32(tensor.float().cpu().contiguous().numpy(), dtype)
            if self.writer is not None:
                self.writer.write(hf_name(self.source.spec, place), raw)
            if dtype != "F32":
                tensor.copy_(torch.from_numpy(to_float32(raw, dtype)).view_as(tensor))
        if self.writer is not None:
            self.writer.flush()

    @torch.no_grad()
    def _restore(self, layer: Layer) -> None:
        """The weights of a layer that an earlier run finished, read by process 0 for all."""
        if self.silence:
            shape = shape_of(self.source.spec, Place(UP_SCALE, layer.index))
            layer.up_scale = torch.ones(shape, device=layer.device) if self.config.up_scaled else None
        for place, tensor in layer.tensors():
            if self.writer is not None:
                info = self.writer.slot(hf_name(self.source.spec, place))
                with info.file.open("rb") as stream:
                    stream.seek(info.start)
                    raw = np.frombuffer(stream.read(info.size_bytes), np.uint8)
                tensor.copy_(torch.from_numpy(to_float32(raw, info.dtype).reshape(info.shape).copy()))
            processes.broadcast_(tensor)


@torch.no_grad()
def align(layer: Layer, data: LayerData) -> tuple[float, float]:
    """Flip signs in place; the mean over FFNs of the energy share kept before and after."""
    spec = layer.spec
    tallies = [SignAlignment(spec.neurons, spec.activation, layer.device) for _ in range(spec.ffns)]
    for x_TD in data.ffn_inputs(layer, data.train):
        for expert, (token, _) in enumerate(layer.route(x_TD)):
            tallies[expert].add(*layer.gate_up(x_TD[token], expert))
    before, after = [], []
    for expert, tally in enumerate(tallies):
        signs_F, was, now = tally.signs()
        layer.flip(signs_F, expert)
        before.append(was)
        after.append(now)
    return _mean(before), _mean(after)


@torch.no_grad()
def scale_ups(layer: Layer) -> None:
    """Move the sizes of down's columns to up, in place, so that the size of an activation says what its neuron adds.

    SwiGLU and GeGLU do not change when row j of up is multiplied by c_j and column j of down divided by it.
    """
    weights = [layer.ffn_weights(expert) for expert in range(layer.spec.ffns)]
    sizes = [layer.seen(down_DF).norm(dim=0) for _, _, down_DF in weights]
    mean = torch.cat(sizes).mean().clamp_min(1e-30)
    for (_, up_FD, down_DF), size_F in zip(weights, sizes, strict=True):
        relative_F = (size_F / mean).clamp(1 / _WIDEST, _WIDEST)
        up_FD.mul_(relative_F[:, None])
        down_DF.div_(relative_F)


@torch.no_grad()
def up_scale(layer: Layer, data: LayerData) -> torch.Tensor:
    """The scales of the layer's ups, [F] or [E, F], measured on the training tokens."""
    dense = THRESHOLDED.get(layer.spec.activation, layer.spec.activation)
    tallies = [UpScales(layer.ffn_weights(expert)[0], dense) for expert in range(layer.spec.ffns)]
    for x_TD in data.ffn_inputs(layer, data.train):
        for tally, (token, _) in zip(tallies, layer.route(x_TD), strict=True):
            tally.add(x_TD[token])
    scales = [tally.scales() for tally in tallies]
    return torch.stack(scales) if layer.experts else scales[0]


@torch.no_grad()
def first_thresholds(layer: Layer, data: LayerData, target_sparsity: float, up_passes: float) -> None:
    """Set the thresholds that silence ``target_sparsity`` of the neurons of SwiGLU or GeGLU on the training tokens."""
    step = max(1, data.train_tokens // _LOOKS)
    x_TD = layer.norm(data.residual(layer, slice(0, data.train_tokens, step)))
    factor_TF, up_size_TF = compared(layer, x_TD)
    layer.up_threshold = quantile(up_size_TF, 1 - up_passes) if up_passes < 1 else 0.0
    layer.threshold = quantile(factor_TF * (up_size_TF > layer.up_threshold), target_sparsity)


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
