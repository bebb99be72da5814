"""`tsconvert predictors`: one small network per FFN or expert, trained in the sweep, foresees what fires."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from ..common import processes
from ..common.files import PARTIAL, atomic_folder, refuse_existing
from ..common.progress import note
from ..model.checkpoint import Checkpoint, open_checkpoint
from ..model.files.journal import JOURNAL, KEPT, Journal, unfinished
from ..model.sweep import sweep
from ..text.packing import calibration_rows
from ..text.sequences import Sequences
from .calibration.model import calibrate_model
from .calibration.predicted_mode import compare, predicted_stream
from .config import PredictorConfig
from .folder import write_predictors
from .predictor import Predictor
from .profile.profile import refuse_dense
from .report import FFNReport, PredictorReport
from .training.candidate_store import CandidateStore
from .training.layer_candidates import CandidateTrainer
from .training.rank import check_budget, choices, spend

_CALIBRATION_SHARE = 8  # one sequence in so many is kept from training and calibrates
_EARLIER_SETTINGS = {"method": "low-rank"}  # options that are gone, and their defaults: for journals begun with them
Choices = Sequence[int | None]
"""For each FFN of a layer the candidate that was chosen; None leaves it to exact mode."""


def train_predictors(config: PredictorConfig) -> PredictorReport:
    """Train the predictors of ``config.model`` and write them to ``config.out``.

    Started by torchrun, the processes share the text, and the first one writes. What was found of each layer lies in
    `OUT.partial` until the sweep is over: memory holds one layer's predictors, and ``resume`` goes on from there.

    Raises:
        TsconvertError: bad input, an output that exists, a SwiGLU model, or a rank over the budget.

    Example:
        >>> print(train_predictors(PredictorConfig(model="sparse", out=Path("predictors"), rank=32)))
    """
    start_s = time.monotonic()
    with processes.processes(config.device) as device:
        config = replace(config, device=device, training=config.training.on(device))
        checkpoint = open_checkpoint(config.model)
        refuse_dense(checkpoint, config.model)
        if config.out is not None:
            refuse_existing(config.out)
        check_budget(checkpoint.spec, config.rank, config.budget, everywhere=config.needs_everywhere)
        report = PredictorReport(
            out=config.out, target_energy=config.target_energy, tokens=config.tokens,
            model_parameters=checkpoint.spec.parameters, stored_as=config.training.stored_as,
        )  # fmt: skip
        if config.dry_run:
            from .train_cost import predictors_cost

            return replace(report, cost=predictors_cost(checkpoint.spec, config))
        with _output(config) as folder:
            report = _train(checkpoint, config, CandidateStore(folder), report)
            report = replace(report, elapsed_s=time.monotonic() - start_s)
    return report


@contextmanager
def _output(config: PredictorConfig) -> Iterator[Path]:
    """The partial folder, which process 0 makes; a temporary one where nothing is to be written."""
    if config.out is None:
        with tempfile.TemporaryDirectory(prefix="tsconvert-predictors-") as folder:
            yield Path(processes.broadcast(folder))
    elif processes.rank():
        yield config.out.with_name(config.out.name + PARTIAL)
    else:
        drop = (f"*{KEPT}", JOURNAL)
        with atomic_folder(config.out, resume=config.resume, unfinished=unfinished, drop=drop) as partial:
            yield partial


def _train(
    checkpoint: Checkpoint, config: PredictorConfig, store: CandidateStore, report: PredictorReport
) -> PredictorReport:
    """Sweep, choose, see the effect, and write what belongs into the folder."""
    if not processes.rank():
        asked = {key: str(value) for key, value in asdict(config).items() if key not in ("resume", "out")}
        Journal(store.folder / JOURNAL, {"asked": asked, "model": checkpoint.fingerprint}, _EARLIER_SETTINGS)
    sequences = training_sequences(checkpoint, config)
    stream = sweep(
        checkpoint, sequences.rows_NS, [CandidateTrainer(checkpoint, sequences, config, store)], config.device
    )
    chosen = _choose(store, checkpoint, config)

    def layers(index: int) -> list[Predictor | None]:
        return store.load(index, chosen[index])

    ffns = [ffn for layer in range(len(chosen)) for ffn in _reports(store.reports(layer), chosen[layer], config)]
    calibrated = None
    if config.max_loss is None:
        held_NS = sequences.rows_NS[sequences.held]
        effect = compare(
            stream, sequences.held, predicted_stream(checkpoint, held_NS, layers, config.device), slice(None)
        )
    else:
        calibrated = calibrate_model(
            layers, checkpoint, stream, sequences.held, config.target_energy, config.max_loss, config.bits
        )
        ffns = [new if new.used else old for old, new in zip(ffns, calibrated.reports, strict=True)]
        effect = calibrated.effect
    report = replace(
        report, tokens=sequences.tokens, ffns=tuple(ffns),
        predictor_parameters=sum(
            ffn.rank * (checkpoint.spec.width + checkpoint.spec.neurons) for ffn in ffns if ffn.used
        ),
        **vars(effect),
    )  # fmt: skip
    if not processes.rank() and config.out is not None:
        found = report.for_folder(config.data, config.seed)
        for varying in ("elapsed_s", "cost"):  # the same run gives the same bytes
            found.pop(varying)
        read = (store.read(layer, chosen[layer]) for layer in range(len(chosen)))
        if calibrated is not None:
            read = (calibrated.apply(layer, row) for layer, row in enumerate(read))
        write_predictors(read, checkpoint.fingerprint, found, store.folder)
    return report


def training_sequences(checkpoint: Checkpoint, config: PredictorConfig) -> Sequences:
    """This process's sequences; those held back calibrate."""
    rows = calibration_rows(checkpoint, config.data, tokens=config.tokens, context=config.context, seed=config.seed)
    return Sequences(rows, _CALIBRATION_SHARE)


def _choose(store: CandidateStore, checkpoint: Checkpoint, config: PredictorConfig) -> list[Choices]:
    """By layer: what reads the fewest bytes, within the budget."""
    spec, ways = checkpoint.spec, []
    for layer in range(spec.layers):
        for reports in store.reports(layer):
            weights = [report.rank * (spec.width + spec.neurons) for report in reports]
            ways.append(choices(reports, weights, config.max_density, exact=not config.needs_everywhere))
    budget = None if config.budget is None else config.budget * spec.parameters
    taken = spend(ways, budget)
    return [taken[layer * spec.ffns : (layer + 1) * spec.ffns] for layer in range(spec.layers)]


def _reports(ffns: Sequence[Sequence[FFNReport]], chosen: Choices, config: PredictorConfig) -> list[FFNReport]:
    """The reports on one layer's FFNs, with the reason where exact mode stays; notes for what cannot be as asked."""
    found = []
    for reports, i in zip(ffns, chosen, strict=True):
        report = reports[0] if i is None else reports[i]
        where = f"layer {report.layer}" + (f", expert {report.expert}" if len(ffns) > 1 else "")
        limit = config.max_density
        if i is not None and limit is not None and report.predicted_density > limit:
            needs = f"{report.predicted_density:.3f}"
            note(f"{where}: the energy asked for takes density {needs}, over --max-density {limit:g}")
        if i is None and report.used:
            pays = any(each.pays for each in reports)
            reason = "over the budget" if pays else "does not pay"
            why = "is over the --budget" if pays else "would not pay"
            note(f"{where}: a predictor {why}; it is left to exact mode")
            report = replace(min(reports, key=lambda each: each.bytes_predicted), used=False, reason=reason)
        found.append(report)
    return found
