"""`relufy --recover full --predictors`: the joint local stage, the whole model under the mask, thresholds set anew."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..convert.checkpoint import Checkpoint, open_checkpoint
from ..convert.errors import TsconvertError
from ..convert.full_recovery import relufy_fully
from ..convert.relufy import RelufyConfig, RelufyReport, relufy
from ..convert.sweep import Stream
from ..convert.writer import refuse_existing
from .calibrate import FFNReport, calibrate, judge
from .cost import Bits
from .effect import Effect, compare, feed_forward_predicted, predicted_stream
from .folder import PredictorSet, load_predictors, save_predictors
from .in_loop import LoopPredictors
from .joint import JointConfig, JointReport, relufy_with_predictors
from .labels import ffns_of
from .predictor import Predictor
from .report import PredictorReport

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width.
_ENERGY_SHARE = 4  # one token in so many measures the mean energy, the others calibrate
_LOSS = 1.02  # of perplexity, that predicted mode may cost
Layers = list[list[Predictor | None]]


def relufy_fully_with_predictors(
    config: RelufyConfig, joint: JointConfig, *, start: Path | None = None, share: float = 0.5
) -> JointReport:
    """Recover a model layer by layer and then as a whole, its predictors trained along in both stages.

    Args:
        start: the predictors of ``config.model``, if that is sparse already; there is then no local stage.
        share: of the sequences of the second stage, those that see the predicted neurons only.

    Raises:
        TsconvertError: bad input, as for `relufy`.
    """
    start_s = time.monotonic()
    if config.dry_run:
        return JointReport(recovery=relufy(config), predictors=None)
    if not config.resume:
        refuse_existing(joint.out)
    if (start is None) == open_checkpoint(config.model).spec.sparse:
        raise TsconvertError(
            f"{config.model}: predictors to start from are for a model that is sparse already; a dense one's are made"
        )
    local = joint.out.with_name(joint.out.name + ".local")
    if not config.resume:
        shutil.rmtree(local, ignore_errors=True)

    def first(stage: RelufyConfig) -> RelufyReport:
        return relufy_with_predictors(stage, replace(joint, out=local)).recovery

    loop = LoopPredictors(start or local, joint.target_energy, joint.training.stored_as, share)
    found: list[PredictorReport] = []

    def last(folder: Path, held_NS: torch.Tensor, state: Mapping[str, torch.Tensor]) -> None:
        found.append(_finish(loop.trained(state), Checkpoint(folder), held_NS, config, joint))

    report = relufy_fully(config, local=first, in_loop=loop, finish=last)
    shutil.rmtree(local, ignore_errors=True)
    predictors = replace(found[0], elapsed_s=time.monotonic() - start_s) if found else None
    return JointReport(recovery=report, predictors=predictors)


def _finish(
    layers: Layers, checkpoint: Checkpoint, held_NS: torch.Tensor, config: RelufyConfig, joint: JointConfig
) -> PredictorReport:
    """Set the thresholds, say what the predictors do, and write their folder."""
    chosen, reports, effect = _thresholds(layers, checkpoint, held_NS, joint.target_energy, joint.bits, config.device)
    report = PredictorReport(
        out=joint.out, method="low-rank, trained along with the whole model", target_energy=joint.target_energy,
        tokens=config.full.tokens, model_parameters=checkpoint.spec.parameters, ffns=tuple(reports),
        predictor_parameters=sum(p.parameters for layer in chosen for p in layer if p is not None), **vars(effect),
    )  # fmt: skip
    kept = report.to_json() | {"data": [source.path for source in config.data], "seed": config.seed}
    kept.pop("out")
    made_for = checkpoint.fingerprint
    before = load_predictors(joint.out).model_fingerprint if joint.out.exists() else None
    if before != made_for:  # equal: a run that was killed between writing these and naming the model is resumed
        save_predictors(PredictorSet(model_fingerprint=made_for, ffns=chosen, report=kept), joint.out)
    return report


def _thresholds(
    layers: Layers, checkpoint: Checkpoint, held_NS: torch.Tensor, target_energy: float, bits: Bits, device: str
) -> tuple[Layers, list[FFNReport], Effect]:
    """The predictors at threshold 0, as they were trained, or at thresholds that keep the energy on held-out text.

    The second ones only where they are of use: predicted mode costs too much at 0 and less with them, or it costs
    little with either and they name fewer neurons. PowerInfer has no threshold but 0.
    """
    exact, predicted = Stream(checkpoint, held_NS, device), Stream(checkpoint, held_NS, device)
    at_zero: list[FFNReport] = []
    at_energy: list[FFNReport] = []
    moved: Layers = []
    for index, row in enumerate(layers):
        layer = exact.layer(index)
        exact.attend(layer)
        exact.feed_forward(layer)
        predicted.attend(layer)
        x_TD = torch.cat([part_TD.cpu() for part_TD in predicted.inputs(layer)])
        ffns = ffns_of(layer, x_TD, len(x_TD) // _ENERGY_SHARE)
        moved.append([])
        for i, (ffn, predictor) in enumerate(zip(ffns, row, strict=True)):
            if predictor is None:
                moved[-1].append(None)
                left = FFNReport(layer=index, expert=i, rank=0, used=False, reason="as before")
                at_zero.append(left)
                at_energy.append(left)
                continue
            row[i] = predictor = replace(predictor, fired_F=ffn.fired().cpu().numpy())
            other = replace(predictor, threshold=calibrate(ffn, predictor, target_energy))
            moved[-1].append(other)
            at_zero.append(judge(ffn, predictor, bits))
            at_energy.append(judge(ffn, other, bits))
        feed_forward_predicted(predicted, layer, row)
    again = predicted_stream(checkpoint, held_NS, lambda layer: moved[layer], device)
    zero, energy = (compare(exact, slice(None), stream, slice(None)) for stream in (predicted, again))
    if _better(energy, _density(at_energy), zero, _density(at_zero)):
        return moved, at_energy, energy
    return layers, at_zero, zero


def _better(other: Effect, density: float, zero: Effect, density_at_zero: float) -> bool:
    lost, lost_at_zero = (each.perplexity_predicted / each.perplexity_exact for each in (other, zero))
    if lost_at_zero > _LOSS:
        return lost < lost_at_zero
    return lost <= _LOSS and density < 0.95 * density_at_zero


def _density(reports: Sequence[FFNReport]) -> float:
    used = [report.predicted_density for report in reports if report.used]
    return sum(used) / max(1, len(used))
