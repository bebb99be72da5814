"""`tsconvert relufy`: a SwiGLU checkpoint becomes a dReLU one, aligned and recovered, written layer by layer."""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint, from_float32, open_checkpoint, read_header, shard_files, to_float32
from .corpora import Source, calibration_rows
from .drelu import alignment_signs, sparse_config, write_companions
from .errors import TsconvertError
from .journal import JOURNAL, Journal
from .layers import Layer
from .names import Place, hf_name
from .progress import progress
from .recovery import (
    LayerData,
    LayerResult,
    LocalRecovery,
    expert_tokens,
    judge_layer,
    recover_layer,
    student_finish,
    student_step,
)
from .sweep import Stream
from .writer import CheckpointWriter, atomic_folder, check_disk, plan_like, refuse_existing, write_json

FORMAT_VERSION = 1
PROVENANCE = "tsconvert.json"
_JUDGE_SHARE = 16  # one sequence in so many is kept from training and judges


@dataclass(frozen=True, kw_only=True)
class RelufyConfig:
    """What `relufy` is asked to do."""

    model: str
    out: Path
    activation: str = "drelu"
    """`drelu` or `reglu`."""
    recover: str = "local"
    """`none` or `local`."""
    align: bool = True
    data: tuple[Source, ...] = ()
    """Text to align and recover on; empty takes the embedded text."""
    tokens: int = 65_536
    context: int = 512
    """Tokens a sequence."""
    teacher: str | None = None
    """The dense model to learn from; None is the model itself."""
    min_expert_tokens: int = 0
    """An expert that sees fewer tokens stops the run, by name."""
    training: LocalRecovery = field(default_factory=LocalRecovery)
    dtype: str | None = None
    """`F32`, `F16` or `BF16` for the output; None keeps each tensor's."""
    max_shard_bytes: int = 5_000_000_000
    device: str = "cpu"
    seed: int = 0
    resume: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("activation", ("drelu", "reglu")),
            ("recover", ("none", "local")),
            ("dtype", (None, "F32", "F16", "BF16")),
        ):
            if getattr(self, name) not in choices:
                raise TsconvertError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(map(str, choices))}")


@dataclass(frozen=True, kw_only=True)
class RelufyReport:
    """What `relufy` did."""

    out: Path
    source_fingerprint: str
    parameters: int
    size_bytes: int
    tokens: int = 0
    energy_kept: tuple[float, float] | None = None
    """Share of the SwiGLU energy on u > 0 before and after sign alignment, mean over layers."""
    layers: tuple[LayerResult, ...] = ()
    dense_perplexity: float | None = None
    """On the sequences that were kept from training."""
    perplexity: float | None = None
    elapsed_s: float = 0.0
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self) | {"out": str(self.out)}

    def __str__(self) -> str:
        what = f"{self.out}: {self.parameters / 1e6:.1f}M parameters, {self.size_bytes / 1e6:,.1f} MB"
        if self.dry_run:
            return f"would write {what}"
        lines = [f"{what}, {self.elapsed_s:.0f} s"]
        if self.energy_kept:
            before, after = self.energy_kept
            lines.append(f"sign alignment: dReLU keeps {after:.0%} of the SwiGLU energy instead of {before:.0%}")
        if self.perplexity is not None and self.dense_perplexity is not None:
            ratio = self.perplexity / self.dense_perplexity
            lines.append(
                f"perplexity on sequences kept from training: {self.perplexity:.2f}, dense {self.dense_perplexity:.2f}"
                f" ({ratio:.2f} times)"
            )
        if self.layers:
            density = sum(layer.density for layer in self.layers) / len(self.layers)
            lines.append(f"density: {density:.1%} of the neurons fire, on average over layers")
        return "\n".join(lines)


def relufy(config: RelufyConfig) -> RelufyReport:
    """Convert ``config.model`` and write the sparse checkpoint to ``config.out``.

    Raises:
        TsconvertError: bad input; what was already written stays in `OUT.partial` for `--resume`.

    Example:
        >>> relufy(RelufyConfig(model="tiny-mistral", out=Path("sparse"), recover="none"))
    """
    start_s = time.monotonic()
    refuse_existing(config.out)
    source = open_checkpoint(config.model)
    if source.spec.sparse and config.teacher is None:
        raise TsconvertError(
            f"{config.model}: is {source.spec.activation} already, nothing is left to do;"
            " --teacher DENSE recovers it further"
        )
    plan = plan_like([source.info(place) for place in source.places], config.dtype)
    plan = [_renamed(tensor, place) for tensor, place in zip(plan, source.places, strict=True)]
    size_bytes = sum(tensor.size_bytes for tensor in plan)
    check_disk(config.out, size_bytes)
    done = RelufyReport(
        out=config.out, source_fingerprint="", parameters=source.spec.parameters, size_bytes=size_bytes, dry_run=True
    )
    if config.dry_run:
        return done
    with atomic_folder(config.out, resume=config.resume) as folder:
        with CheckpointWriter(folder, plan, config.max_shard_bytes) as writer:
            if config.recover == "none" and not config.align:
                _copy(source, writer, config, source.places)
                found: dict[str, Any] = {}
            else:
                found = _sweep(source, writer, folder, config)
        write_companions(source, sparse_config(source, config.activation, config.dtype), folder)
        report = RelufyReport(
            out=config.out, source_fingerprint=source.fingerprint, parameters=source.spec.parameters,
            size_bytes=size_bytes, elapsed_s=time.monotonic() - start_s, **found,
        )  # fmt: skip
        (folder / JOURNAL).unlink(missing_ok=True)
        write_json(folder / PROVENANCE, _provenance(config, report))
    return report


def _renamed(tensor: Any, place: Place) -> Any:
    """Experts are written one tensor each, whatever layout they came in."""
    return replace(tensor, name=hf_name(place))


def _copy(source: Checkpoint, writer: CheckpointWriter, config: RelufyConfig, places: list[Place]) -> None:
    """Tensors that do not change: byte for byte, unless another dtype is asked for."""
    with progress("tensors", len(places)) as step:
        for place in places:
            raw, dtype = source.raw(place), source.info(place).dtype
            if config.dtype and config.dtype != dtype:
                raw = from_float32(to_float32(raw, dtype), config.dtype)
            writer.write(hf_name(place), raw)
            step("")


def _sweep(source: Checkpoint, writer: CheckpointWriter, folder: Path, config: RelufyConfig) -> dict[str, Any]:
    """Align and recover layer by layer, writing each when it is done."""
    teacher_checkpoint = open_checkpoint(config.teacher) if config.teacher else source
    _match(source, teacher_checkpoint, config)
    rows_NS = _rows(source, config)
    judges = max(1, len(rows_NS) // _JUDGE_SHARE)
    train_tokens = (len(rows_NS) - judges) * rows_NS.shape[1]
    autocast = config.recover == "local" and config.training.autocast
    how: dict[str, Any] = {"device": config.device, "scratch": config.out.parent, "autocast": autocast}
    teacher = Stream(teacher_checkpoint, rows_NS, **how)
    student = Stream(source, rows_NS, activation=config.activation, **how)
    outside = [place for place in source.places if place.layer is None or place.role in ("fc1", "fc2")]
    _copy(source, writer, config, outside)

    asked = {key: str(value) for key, value in asdict(config).items() if key not in ("resume", "out")}
    journal = Journal(folder / JOURNAL, {"asked": asked, "source": source.fingerprint})
    results: list[LayerResult] = []
    energies: list[tuple[float, float]] = []
    with progress("layers", source.spec.layers) as step:
        for index in range(source.spec.layers):
            dense = teacher.layer(index)
            teacher.attend(dense)
            teacher.feed_forward(dense)
            sparse = student.layer(index)
            if (entry := journal.entry(index)) is not None:
                _restore(sparse, folder)
                student.attend(sparse)
                student.feed_forward(sparse)
                result, energy = LayerResult(**entry["result"]), (entry["energy"][0], entry["energy"][1])
            else:
                data = student_step(student, sparse, teacher.hidden_NSD, train_tokens)
                energy = _align(sparse, student) if config.align and not source.spec.sparse else (0.0, 0.0)
                result = _recover(sparse, data, config)
                _write_layer(sparse, source, writer, config)
                student_finish(student, sparse, data)
                writer.flush()
                journal.add(index, {"result": asdict(result), "energy": energy})
            results.append(result)
            energies.append(energy)
            step(f"error {result.error_before:.3f} to {result.error_after:.3f}, density {result.density:.2f}")
    judged = slice(len(rows_NS) - judges, None)
    aligned = config.align and not source.spec.sparse
    return {
        "tokens": rows_NS.numel(),
        "layers": tuple(results),
        "energy_kept": (_mean([e[0] for e in energies]), _mean([e[1] for e in energies])) if aligned else None,
        "dense_perplexity": float(torch.tensor(teacher.cross_entropy(judged)).exp()),
        "perplexity": float(torch.tensor(student.cross_entropy(judged)).exp()),
    }


def _match(source: Checkpoint, teacher: Checkpoint, config: RelufyConfig) -> None:
    ours, theirs = source.spec, teacher.spec
    if theirs.sparse:
        raise TsconvertError(f"{config.teacher}: is {theirs.activation}; the teacher must be the dense SwiGLU model")
    if (ours.layers, ours.width, ours.vocab) != (theirs.layers, theirs.width, theirs.vocab):
        raise TsconvertError(
            f"{config.teacher}: {theirs.layers} layers of width {theirs.width}, where {config.model} has"
            f" {ours.layers} of {ours.width}; local recovery needs a teacher of the same shape"
        )


def _rows(source: Checkpoint, config: RelufyConfig) -> torch.Tensor:
    rows = calibration_rows(source, config.data, tokens=config.tokens, context=config.context, seed=config.seed)
    return torch.from_numpy(rows)


def _align(layer: Layer, student: Stream) -> tuple[float, float]:
    """Flip signs in place; the mean over FFNs of the energy share kept before and after."""
    x_TD = torch.cat(list(student.inputs(layer)))
    before, after = [], []
    with torch.no_grad():
        for expert, (token, _) in enumerate(layer.route(x_TD)):
            gate_FD, up_FD, down_DF = layer.ffn_weights(expert)
            signs_F, was, now = alignment_signs(x_TD[token], gate_FD, up_FD)
            up_FD.mul_(signs_F[:, None])
            down_DF.mul_(signs_F)
            before.append(was)
            after.append(now)
    return _mean(before), _mean(after)


def _recover(layer: Layer, data: LayerData, config: RelufyConfig) -> LayerResult:
    seen = expert_tokens(layer, data)
    if (fewest := min(seen)) < config.min_expert_tokens:
        raise TsconvertError(
            f"layer {layer.index}: expert {seen.index(fewest)} saw {fewest} tokens, fewer than --min-expert-tokens"
            f" {config.min_expert_tokens}; give more --tokens or other --data"
        )
    if config.recover == "local":
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + layer.index)
        return recover_layer(layer, data, config.training, generator, seen)
    return judge_layer(layer, data, seen)


def _write_layer(layer: Layer, source: Checkpoint, writer: CheckpointWriter, config: RelufyConfig) -> None:
    """Write the layer, and round it to what was written: the layers after it are to learn from that."""
    with torch.no_grad():
        for place, tensor in layer.tensors():
            dtype = config.dtype or source.info(place).dtype
            raw = from_float32(tensor.float().cpu().contiguous().numpy(), dtype)
            writer.write(hf_name(place), raw)
            tensor.copy_(torch.from_numpy(to_float32(raw, dtype).copy()).view_as(tensor))


def _restore(layer: Layer, folder: Path) -> None:
    """The weights of a layer that an earlier run finished."""
    infos = {name: info for file in shard_files(folder) for name, info in read_header(file).items()}
    with torch.no_grad():
        for place, tensor in layer.tensors():
            info = infos[hf_name(place)]
            with info.file.open("rb") as stream:
                stream.seek(info.start)
                raw = torch.frombuffer(bytearray(stream.read(info.size_bytes)), dtype=torch.uint8).numpy()
            tensor.copy_(torch.from_numpy(to_float32(raw, info.dtype).reshape(info.shape).copy()))


def _provenance(config: RelufyConfig, report: RelufyReport) -> dict[str, Any]:
    settings = asdict(config) | {"out": str(config.out)}
    return {
        "format": "tsconvert relufy",
        "format_version": FORMAT_VERSION,
        "settings": settings,
        "report": report.to_json(),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
