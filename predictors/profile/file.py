"""A profile, how often each neuron fires, and its file."""

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError, reason, shown
from ...common.files import atomic_file

# Shape suffixes: L layers, C corpora, E experts, F neurons.
FORMAT_VERSION = 1
FORMAT = "tsconvert profile"
Counts = npt.NDArray[np.int64]
_SHARES = ("density", "density_percentiles", "gate_density", "hot80", "energy98", "union")


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """What fires in one layer. All shares and densities lie between 0 and 1."""

    counts_CEF: Counts
    """How often each neuron fired, by corpus and expert (one expert for a dense FFN)."""
    tokens_CE: Counts
    """Tokens that each FFN saw."""
    density: float
    """Share of the neurons that fire, of those in the FFNs that a token is routed to."""
    density_percentiles: dict[int, float]
    """5, 50, 95 and 99 percentiles of the same over tokens."""
    gate_density: float
    """Share of the neurons whose gate is positive: those whose up row the exact mode reads."""
    hot80: float
    """Share of the neurons that makes 80 % of the activations."""
    energy98: float
    """Share of the (token, neuron) pairs that carries 98 % of the energy (h_j |down_j|)^2."""
    union: dict[int, float]
    """Share of the layer's neurons that 1, 2, 4, ... consecutive tokens need together."""

    @property
    def densities_C(self) -> list[float]:
        """Density by corpus."""
        return _density(self.counts_CEF.sum((1, 2)), self.tokens_CE.sum(1) * self.counts_CEF.shape[2])

    @property
    def densities_E(self) -> list[float]:
        """Density by expert."""
        return _density(self.counts_CEF.sum((0, 2)), self.tokens_CE.sum(0) * self.counts_CEF.shape[2])

    def hot_overlap(self, one: int, other: int) -> float:
        """Jaccard overlap of the neurons that make 80 % of the activations in two corpora."""
        return overlap(hot_set(self.counts_CEF[one].ravel()), hot_set(self.counts_CEF[other].ravel()))


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How often each neuron of a model fires."""

    model_fingerprint: str
    corpora: tuple[str, ...]
    tokens: tuple[int, ...]
    """By corpus."""
    layers: tuple[LayerProfile, ...]
    elapsed_s: float = 0.0

    @property
    def density(self) -> float:
        """Mean over layers."""
        return sum(layer.density for layer in self.layers) / len(self.layers)

    def counts(self, layer: int, expert: int = 0) -> Counts:
        """How often each neuron [F] of one FFN fired, over all corpora."""
        counts_F: Counts = self.layers[layer].counts_CEF[:, expert].sum(0)
        return counts_F

    def to_json(self) -> dict[str, Any]:
        """The summary, without the counts."""
        return {
            "model_fingerprint": self.model_fingerprint,
            "corpora": list(self.corpora),
            "tokens": list(self.tokens),
            "density": self.density,
            "layers": [
                {name: getattr(layer, name) for name in _SHARES}
                | {
                    "density_by_corpus": layer.densities_C,
                    "hot_overlap": [[*pair, layer.hot_overlap(*pair)] for pair in self._corpus_pairs],
                    "density_by_expert": layer.densities_E,
                    "tokens_by_expert": layer.tokens_CE.sum(0).tolist(),
                }
                for layer in self.layers
            ],
            "elapsed_s": self.elapsed_s,
        }

    @property
    def _corpus_pairs(self) -> list[tuple[int, int]]:
        return list(combinations(range(len(self.corpora)), 2))

    def __str__(self) -> str:
        lines = [
            "layer  density     5 %    50 %    95 %    99 %  80% of activations  98% of energy  union of 8",
            *(f"{i:5}  {_row(layer)}" for i, layer in enumerate(self.layers)),
            f"density {self.density:.3f}, mean over layers, {sum(self.tokens):,} tokens, {self.elapsed_s:.0f} s",
        ]
        for one, other in self._corpus_pairs:
            common = sum(layer.hot_overlap(one, other) for layer in self.layers) / len(self.layers)
            lines.append(f"hot neurons of {self.corpora[one]} and {self.corpora[other]}: overlap {common:.2f}")
        for i, layer in enumerate(self.layers):
            unseen = [str(e) for e, tokens in enumerate(layer.tokens_CE.sum(0)) if not tokens]
            if unseen:
                lines.append(f"layer {i}: no token reached expert {', '.join(unseen)}; give more or other --data")
        return "\n".join(lines)


def _row(layer: LayerProfile) -> str:
    spread = "  ".join(f"{value:6.3f}" for value in layer.density_percentiles.values())
    union = layer.union.get(8, max(layer.union.values(), default=0.0))
    return f"{layer.density:7.3f}  {spread}  {layer.hot80:18.3f}  {layer.energy98:13.3f}  {union:10.3f}"


def save_profile(found: Profile, out: Path) -> None:
    """Write one safetensors file: `counts` [L, C, E, F] and `tokens` [L, C, E], int64, the rest as JSON metadata."""
    from safetensors.numpy import save

    summary = found.to_json() | {"format": FORMAT, "format_version": FORMAT_VERSION}
    summary.pop("elapsed_s")  # the same run gives the same bytes
    tensors = {
        "counts": np.stack([layer.counts_CEF for layer in found.layers]),
        "tokens": np.stack([layer.tokens_CE for layer in found.layers]),
    }
    with atomic_file(out) as stream:
        stream.write(save(tensors, {"tsconvert": json.dumps(summary)}))


def load_profile(path: Path, model_fingerprint: str | None = None) -> Profile:
    """Read what `save_profile` wrote.

    Args:
        path: the file.
        model_fingerprint: of the model that it is to be used with; None skips the comparison.

    Raises:
        TsconvertError: no profile, another format version, or another model's.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise TsconvertError(f"{path}: no such file; make it with `tsconvert profile MODEL --out {path}`")
    try:
        with safe_open(path, "np") as file:
            summary = json.loads((file.metadata() or {})["tsconvert"])
            counts, tokens = file.get_tensor("counts"), file.get_tensor("tokens")
        version, made_for = summary["format_version"], str(summary["model_fingerprint"])
    except Exception as error:
        raise TsconvertError(f"{path}: not a profile that can be read ({reason(error)}); make it again") from None
    if version != FORMAT_VERSION:
        raise TsconvertError(
            f"{path}: format version {shown(version)}, this tsconvert reads {FORMAT_VERSION}; make it again"
        )
    if model_fingerprint is not None and made_for != model_fingerprint:
        raise TsconvertError(
            f"{path}: this profile is of another model (fingerprint {made_for[:12]}, this one is"
            f" {model_fingerprint[:12]}); make one of this model"
        )
    try:
        return _profile(summary, counts, tokens)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TsconvertError(f"{path}: not a profile that can be read ({reason(error)}); make it again") from None


def _profile(summary: dict[str, Any], counts_LCEF: Counts, tokens_LCE: Counts) -> Profile:
    """The profile; KeyError, TypeError, ValueError or AttributeError if its parts do not fit each other."""
    corpora, tokens = tuple(map(str, summary["corpora"])), tuple(map(int, summary["tokens"]))
    shaped = counts_LCEF.ndim == 4 and counts_LCEF.shape[:3] == tokens_LCE.shape and counts_LCEF.size
    if not shaped or counts_LCEF.shape[1] != len(corpora) or len(tokens) != len(corpora):
        raise ValueError("its tables do not fit each other")
    if any(table.dtype != np.int64 or table.min() < 0 for table in (counts_LCEF, tokens_LCE)):
        raise ValueError("its tables hold no counts")
    layers = tuple(_layer(*each) for each in zip(summary["layers"], counts_LCEF, tokens_LCE, strict=True))
    return Profile(model_fingerprint=str(summary["model_fingerprint"]), corpora=corpora, tokens=tokens, layers=layers)


def _layer(summary: dict[str, Any], counts_CEF: Counts, tokens_CE: Counts) -> LayerProfile:
    return LayerProfile(
        counts_CEF=counts_CEF,
        tokens_CE=tokens_CE,
        density=float(summary["density"]),
        density_percentiles={int(p): float(value) for p, value in summary["density_percentiles"].items()},
        gate_density=float(summary["gate_density"]),
        hot80=float(summary["hot80"]),
        energy98=float(summary["energy98"]),
        union={int(width): float(share) for width, share in summary["union"].items()},
    )


def _density(fired: Counts, seen: Counts) -> list[float]:
    return [float(part / max(1, whole)) for part, whole in zip(fired, seen, strict=True)]


def hot_set(counts_F: Counts, share: float = 0.8) -> Counts:
    """The fewest neurons that make ``share`` of all activations, most frequent first."""
    order = np.argsort(-counts_F, kind="stable")
    made = np.cumsum(counts_F[order])
    if made[-1] == 0:
        return order[:0]
    return order[: int(np.searchsorted(made, share * made[-1])) + 1]


def hot_share(counts_F: Counts, share: float = 0.8) -> float:
    """The share of neurons in `hot_set`; PowerInfer (2312.12456) reports 0.26 to 0.43 for share 0.8."""
    return len(hot_set(counts_F, share)) / len(counts_F)


def overlap(one: Counts, other: Counts) -> float:
    """Jaccard overlap of two sets of neurons: common over all, 1 for equal sets."""
    together = len(np.union1d(one, other))
    return len(np.intersect1d(one, other)) / together if together else 1.0
