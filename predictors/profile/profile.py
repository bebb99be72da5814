"""`tsconvert profile`: how often each neuron of each layer and expert fires over one or several corpora."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from ...common import processes
from ...common.errors import TsconvertError
from ...common.files import atomic_folder, refuse_existing, reserved_name
from ...model.checkpoint import Checkpoint, open_checkpoint
from ...model.layers import Layer
from ...model.sweep import Stream, sweep
from ...text.packing import calibration_rows
from ...text.sources import Source
from .config import ProfileConfig
from .file import LayerProfile, Profile, hot_share, save_profile
from .statistics import EnergyHistogram, fired_union

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, F neurons, E experts, C corpora.
_BLOCK_TOKENS = 2048
PERCENTILES = (5, 50, 95, 99)


def profile(config: ProfileConfig) -> Profile:
    """Count what fires in ``config.model``, and write it to ``config.out``.

    Raises:
        TsconvertError: bad input, an output that exists, or a SwiGLU model.

    Example:
        >>> print(profile(ProfileConfig(model="sparse", tokens=4096)))
    """
    start_s = time.monotonic()
    with processes.processes(config.device) as device:
        config = replace(config, device=device)
        for out in (config.out, config.powerinfer_dir):
            if out is not None:
                refuse_existing(out)
        checkpoint = open_checkpoint(config.model)
        refuse_dense(checkpoint, config.model)
        if config.powerinfer_dir is not None:
            if checkpoint.spec.experts:
                raise TsconvertError(
                    f"--powerinfer-dir: {config.model} has experts, and PowerInfer's solver takes dense FFNs only;"
                    " leave it out"
                )
            if checkpoint.spec.neurons % 256:
                raise TsconvertError(
                    f"--powerinfer-dir: {checkpoint.spec.neurons} neurons, and PowerInfer's solver wants a multiple of"
                    " 256; leave it out"
                )
        with nullcontext() if config.out is None or processes.rank() else reserved_name(config.out):
            found = _count(checkpoint, config)
            found = replace(found, elapsed_s=time.monotonic() - start_s)
            if config.out is not None and not processes.rank():
                save_profile(found, config.out)
        if config.powerinfer_dir is not None and not processes.rank():
            _save_powerinfer_activations(found, config.powerinfer_dir)
    return found


def _save_powerinfer_activations(found: Profile, out: Path) -> None:
    """Write PowerInfer's `activation_{i}.pt`: one tensor [F] of counts a layer.

    Its solver reads the numbers, `--layer` of them; nothing else may lie in the folder, because its exporter lists it.
    """
    with atomic_folder(out) as folder:
        for i in range(len(found.layers)):
            whole = BytesIO()  # torch's own file writer says of a full disk that a position was unexpected
            torch.save(torch.from_numpy(found.counts(i)), whole)
            (folder / f"activation_{i}.pt").write_bytes(whole.getbuffer())


def _count(checkpoint: Checkpoint, config: ProfileConfig) -> Profile:
    names, corpora = _corpora(checkpoint, config)
    rows_NS = np.concatenate(corpora)
    own = processes.share(len(rows_NS))
    corpus_N = np.repeat(np.arange(len(corpora)), [len(rows) for rows in corpora])
    counter = _Counter(corpus_N[own], len(corpora))
    sweep(checkpoint, torch.from_numpy(rows_NS[own]), [counter], config.device)
    return Profile(
        model_fingerprint=checkpoint.fingerprint,
        corpora=tuple(names),
        tokens=tuple(int(rows.size) for rows in corpora),
        layers=tuple(counter.layers),
    )


def refuse_dense(checkpoint: Checkpoint, model: str) -> None:
    """Stop for a SwiGLU model, which has nothing to count and nothing to foresee."""
    if not checkpoint.spec.sparse:
        raise TsconvertError(
            f"{model}: is {checkpoint.spec.activation}, where every neuron fires for every token; make it sparse with"
            " `tsconvert relufy` first"
        )


def _corpora(checkpoint: Checkpoint, config: ProfileConfig) -> tuple[list[str], "list[np.typing.NDArray[np.int64]]"]:
    """Each source's name and rows [N, S]."""

    def rows(sources: Sequence[Source], tokens: int) -> "np.typing.NDArray[np.int64]":
        return calibration_rows(checkpoint, sources, tokens=tokens, context=config.context, seed=config.seed)

    if not config.data:
        return ["embedded text"], [rows((), config.tokens)]
    weight = sum(source.weight for source in config.data)
    tokens = [max(2 * config.context, round(config.tokens * source.weight / weight)) for source in config.data]
    own = [rows((source,), count) for source, count in zip(config.data, tokens, strict=True)]
    return [source.path for source in config.data], own


class _Counter:
    """The sweep's visitor: one LayerProfile a layer; nothing of a layer's activations outlives a block of tokens."""

    def __init__(self, corpus_N: "np.typing.NDArray[np.int64]", corpora: int) -> None:
        self.corpus_N, self.corpora = corpus_N, corpora
        self.layers: list[LayerProfile] = []

    def visit(self, layer: Layer, stream: Stream) -> str:
        """Profile ``layer``."""
        tally = _LayerTally(layer, self.corpora, stream.context)
        for part, x_TD in zip(stream.batches(), stream.inputs(layer), strict=True):
            corpus_T = np.repeat(self.corpus_N[part], stream.context)
            step = max(1, _BLOCK_TOKENS // stream.context) * stream.context
            for start in range(0, len(x_TD), step):
                tally.add(x_TD[start : start + step], corpus_T[start : start + step])
        self.layers.append(tally.result())
        return f"density {self.layers[-1].density:.3f}"


class _LayerTally:
    """Sums over blocks of whole sequences."""

    def __init__(self, layer: Layer, corpora: int, context: int) -> None:
        self.layer, self.context = layer, context
        experts = max(1, layer.experts)
        neurons = layer.ffn_weights(0)[0].shape[0]
        self.counts_CEF = np.zeros((corpora, experts, neurons), np.int64)
        self.tokens_CE = np.zeros((corpora, experts), np.int64)
        self.down_EF = [layer.ffn_weights(expert)[2].norm(dim=0) for expert in range(experts)]
        self.fired_T: list[torch.Tensor] = []  # fired neurons a token, over the experts that it saw
        self.seen_T: list[torch.Tensor] = []  # neurons that it saw
        self.gate_fired = 0
        self.energy = EnergyHistogram()
        self.union: dict[int, float] = {}
        self.sequences = 0

    @torch.no_grad()
    def add(self, x_TD: torch.Tensor, corpus_T: "np.typing.NDArray[np.int64]") -> None:
        """Count one block of whole sequences."""
        fired_T, seen_T = torch.zeros(len(x_TD)), torch.zeros(len(x_TD))
        grown: dict[int, float] = {}
        for expert, (token, _) in enumerate(self.layer.route(x_TD)):
            seen_TD = x_TD[token]
            h_TF = self.layer.activations(seen_TD, expert)
            fires_TF = h_TF != 0
            self.gate_fired += int((self.layer.gate_up(seen_TD, expert)[0] > 0).sum())
            self.energy.add((h_TF * self.down_EF[expert]).square())
            here = token.cpu()
            fired_T[here] += fires_TF.sum(1).cpu()
            seen_T[here] += fires_TF.shape[1]
            self._count(expert, fires_TF, corpus_T[here.numpy()])
            for width, share in fired_union(fires_TF, token, len(x_TD), self.context).items():
                grown[width] = grown.get(width, 0.0) + share / len(self.down_EF)
        sequences = len(x_TD) // self.context
        for width, share in grown.items():
            self.union[width] = self.union.get(width, 0.0) + share * sequences
        self.sequences += sequences
        self.fired_T.append(fired_T)
        self.seen_T.append(seen_T)

    def _count(self, expert: int, fires_TF: torch.Tensor, corpus_T: "np.typing.NDArray[np.int64]") -> None:
        for corpus in np.unique(corpus_T):
            rows = torch.from_numpy(corpus_T == corpus).to(fires_TF.device)
            self.counts_CEF[corpus, expert] += fires_TF[rows].sum(0).cpu().numpy()
            self.tokens_CE[corpus, expert] += int(rows.sum())

    def result(self) -> LayerProfile:
        """The layer's profile, of all processes."""
        self.counts_CEF, self.tokens_CE = (
            processes.sum_(torch.from_numpy(counts).to(self.layer.device)).cpu().numpy()
            for counts in (self.counts_CEF, self.tokens_CE)
        )
        self.energy.add_others(self.layer.device)
        self.union = dict(zip(self.union, processes.sums(*self.union.values()), strict=True))
        self.gate_fired, self.sequences = (int(count) for count in processes.sums(self.gate_fired, self.sequences))
        fired_T, seen_T = (processes.gather(torch.cat(parts)) for parts in (self.fired_T, self.seen_T))
        density_T = (fired_T / seen_T.clamp_min(1)).numpy()
        seen = max(1.0, float(seen_T.double().sum()))
        return LayerProfile(
            counts_CEF=self.counts_CEF,
            tokens_CE=self.tokens_CE,
            density=float(fired_T.double().sum()) / seen,
            density_percentiles={p: float(np.percentile(density_T, p)) for p in PERCENTILES},
            gate_density=self.gate_fired / seen,
            hot80=hot_share(self.counts_CEF.sum(0).ravel(), 0.8),
            energy98=self.energy.share_of_values(0.98),
            union={width: share / max(1, self.sequences) for width, share in sorted(self.union.items())},
        )
