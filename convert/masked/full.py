"""`relufy --recover full --predictors`: the joint local stage, the whole model under the mask, thresholds set anew."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ...common import processes
from ...common.errors import TsconvertError
from ...common.files import refuse_existing
from ...model.checkpoint import Checkpoint, open_checkpoint
from ...model.layers import Layer
from ...model.sweep import Stream, sweep
from ...predictors.energy import ffns_of
from ...predictors.folder import PredictorSet, load_predictors, save_predictors
from ...predictors.predictor import Predictor
from ...predictors.report import PredictorReport
from ...predictors.thresholds import calibrate_model
from ..config import RelufyConfig
from ..full.recovery import relufy_fully
from ..relufy import relufy
from ..report import RelufyReport
from .config import JointConfig
from .local import relufy_with_predictors
from .loop_predictors import LoopPredictors

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width.
Layers = list[list[Predictor | None]]


def relufy_fully_with_predictors(config: RelufyConfig, joint: JointConfig) -> RelufyReport:
    """Recover a model layer by layer and then as a whole, its predictors trained along in both stages.

    Raises:
        TsconvertError: bad input, as for `relufy`.
    """
    start_s, start = time.monotonic(), joint.start
    config = replace(config, predictors=None)
    if config.dry_run:
        return relufy(replace(config, predictors=None))
    if not config.resume:
        refuse_existing(joint.out)
    if open_checkpoint(config.model).spec.sparse:
        if start is None:
            raise TsconvertError(f"{config.model}: is sparse already; give its predictors with --from-predictors")
    elif start is not None:
        raise TsconvertError(
            f"{config.model}: is dense, and its predictors are made along the way; leave --from-predictors out"
        )
    local = joint.out.with_name(joint.out.name + ".local")

    def first(stage: RelufyConfig) -> RelufyReport:
        if not config.resume and not processes.rank():
            shutil.rmtree(local, ignore_errors=True)
        processes.barrier()
        return relufy_with_predictors(stage, replace(joint, out=local))

    loop = LoopPredictors(start or local, joint.target_energy, joint.training.stored_as, joint.masked_share)
    found: list[PredictorReport] = []

    def last(folder: Path, held_NS: torch.Tensor, state: Mapping[str, torch.Tensor]) -> None:
        found.append(_finish(loop.trained(state), Checkpoint(folder), held_NS, config, joint))

    report = relufy_fully(config, local=first, in_loop=loop, finish=last)
    shutil.rmtree(local, ignore_errors=True)
    predictors = replace(found[0], elapsed_s=time.monotonic() - start_s) if found else None
    return replace(report, predictors=predictors)


def _finish(
    layers: Layers, checkpoint: Checkpoint, held_NS: torch.Tensor, config: RelufyConfig, joint: JointConfig
) -> PredictorReport:
    """Set the thresholds, say what the predictors do, and write their folder."""
    exact = sweep(checkpoint, held_NS, [_Counts(layers)], config.device)
    found = calibrate_model(
        layers.__getitem__, checkpoint, exact, slice(None), joint.target_energy, joint.max_loss, joint.bits
    )
    report = PredictorReport(
        out=joint.out, method="low-rank, trained along with the whole model", target_energy=joint.target_energy,
        tokens=config.full.tokens, model_parameters=checkpoint.spec.parameters, ffns=found.reports,
        predictor_parameters=sum(p.parameters for layer in layers for p in layer if p is not None),
        **vars(found.effect),
    )  # fmt: skip
    kept = report.to_json() | {"data": [source.path for source in config.data], "seed": config.seed}
    kept.pop("out")
    made_for = checkpoint.fingerprint
    before = load_predictors(joint.out).model_fingerprint if joint.out.exists() else None
    if before != made_for:  # equal: a run that was killed between writing these and naming the model is resumed
        chosen = [found.apply(layer, row) for layer, row in enumerate(layers)]
        save_predictors(PredictorSet(model_fingerprint=made_for, ffns=chosen, report=kept), joint.out)
    return report


class _Counts:
    """The sweep's visitor that notes in the predictors how often each neuron fires, by which exports order them."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def visit(self, layer: Layer, stream: Stream) -> str:
        """Count on all tokens of ``stream``."""
        x_TD = torch.cat([part_TD.cpu() for part_TD in stream.inputs(layer)])
        self.layers[layer.index] = [
            None if predictor is None else replace(predictor, fired_F=ffn.fired().cpu().numpy())
            for ffn, predictor in zip(ffns_of(layer, x_TD, 0), self.layers[layer.index], strict=True)
        ]
        return ""
