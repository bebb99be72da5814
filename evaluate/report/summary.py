"""The top of the report: what happened, in a few sentences, figures and boxes; and what the folder does not say."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...common.units import size_text
from ..records.eval_report import mean
from ..records.outputs import Record
from .elements import Step, Tile
from .files import engine
from .findings import Findings
from .firing import layer_density
from .perplexity import beside_source, dense_perplexity, is_source, score_groups
from .plots import measured, percent
from .predictors import layer_means
from .training import layers_trained

_NAMES = {
    "drelu": "dReLU",
    "reglu": "ReGLU",
    "swiglu": "SwiGLU",
    "tswiglu": "SwiGLU with thresholds",
    "tgeglu": "GeGLU with thresholds",
}
_TILES = ("perplexity", "worst", "tasks", "density", "predictors", "speed", "shape")
_RECOVERED = {
    "none": "without training",
    "local": "recovered layer by layer",
    "full": "recovered layer by layer and then as a whole",
}


def title(found: Findings) -> str:
    """The page's title."""
    return f"{_model(found)}, made sparse" if found.sparse is not None else _model(found)


def _model(found: Findings) -> str:
    """The dense model's name; where it lies in the folder itself, the folder's."""
    conversions = found.of("convert")
    if conversions:
        return Path(str(conversions[0]["model"])).name
    inside = {found.name(record.path) for record in found.checkpoints}
    return found.source if found.source and found.source not in inside else found.folder.resolve().name


def _perplexities(found: Findings) -> tuple[float, float, str] | None:
    """(dense perplexity, sparse perplexity, on what) with all firing neurons computed."""
    sparse = found.sparse
    if sparse is None:
        return None
    for group in score_groups(found):
        dense = dense_perplexity(found, group)
        exact = [score for score in group if score.get("mode") in ("checkpoint", "dense", "exact")]
        ours = [score for score in exact if not is_source(found, score["model"])]
        same = [score for score in ours if found.name(score["model"]) == found.name(sparse.path)] or ours
        if dense is not None and same:
            return dense, float(same[-1]["perplexity"]), "text held out from training"
    figures = sparse.figures
    if figures.get("perplexity"):
        return float(figures["dense_perplexity"]), float(figures["perplexity"]), "sequences kept from training"
    return None


def _speedup(found: Findings) -> tuple[float, str] | None:
    """How many times as fast as dense mode the fastest mode is, and which that is."""
    speedups = []
    for bench in found.of("bench"):
        rates = {row["mode"]: row["tokens_per_s"] for row in bench["rows"]}
        dense = rates.pop("dense", 0)
        speedups += [(rate / dense, mode) for mode, rate in rates.items() if dense]
    return max(speedups, key=lambda each: each[0], default=None)


def _shape(found: Findings) -> tuple[str, Tile] | None:
    """What a model of another shape would gain here, measured on planted layers; the small model's own speed says no
    more then."""
    for shape in found.of("shape"):
        rates = {row["mode"]: row["tokens_per_s"] for row in shape["rows"]}
        dense = rates.pop("dense", 0)
        if dense and rates:
            mode = max(rates, key=rates.__getitem__)
            times, size = f"{rates[mode] / dense:.2f}", parameters_text(shape["shape"])
            said = (
                f"A model of {size} with as few neurons firing generates {rates[mode]:.1f} tokens/s on this machine in"
                f" {mode} mode, {times} times as many as densely (measured on planted layers)."
            )
            return said, Tile(f"{times} ×", f"as fast as dense, at {size}", f"{mode} mode, planted layers")
    return None


def parameters_text(shape: dict[str, Any]) -> str:
    """The weights of a planted shape."""
    width, kv = shape["width"], shape["kv_heads"] * shape["head_dim"]
    attention = 2 * width * (shape["heads"] * shape["head_dim"] + kv)
    ffn = 3 * width * shape["neurons"] * max(1, shape["experts"])
    return f"{(shape['layers'] * (attention + ffn) + 2 * shape['vocab'] * width) / 1e9:.1f}B weights"


def sentences(found: Findings) -> Iterator[str]:
    """What happened."""
    sparse = found.sparse
    if sparse is None:
        yield f"A folder of {len(found.outputs)} outputs and {sum(map(len, found.results.values()))} measurements."
        return
    figures, spec = sparse.figures, sparse.figures["spec"]
    experts = f" with {spec['experts']} experts a layer" if spec["experts"] else ""
    how = _recovered(figures) or "converted"
    yield (
        f"{_model(found)}, a {spec['family'].capitalize()} model of {_parameters(figures['parameters'])} parameters in"
        f" {spec['layers']} layers{experts}, was turned from SwiGLU into {_NAMES[spec['activation']]} and {how}."
    )
    yield from (sentence for sentence, _ in _highlights(found).values())


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:,.1f} million"


def _highlights(found: Findings) -> dict[str, tuple[str, Tile]]:
    """What is known of the result: each a sentence and a tile."""
    known = {}
    if density := layer_density(found):
        fire = percent(density.mean)
        said = f"Of its FFN neurons {fire} now fire for a token; the others need not be computed."
        known["density"] = said, Tile(fire, "of the neurons fire", "mean over layers")
    if perplexities := _perplexities(found):
        dense, now, times = *map(measured, perplexities[:2]), f"{perplexities[1] / perplexities[0]:.2f}"
        said = f"On {perplexities[2]} its perplexity is {now}, where the dense model has {dense}: {times} times."
        known["perplexity"] = said, Tile(f"{times} ×", "perplexity", f"{now}, dense {dense}")
    if (beside := beside_source(found)) and beside["worst_ratio"]:
        times, where = f"{beside['worst_ratio']:.2f}", beside["worst_ratio_on"]
        said = f"Of the texts that it was measured on one by one, the worst, {where}, has {times} times dense."
        known["worst"] = said, Tile(f"{times} ×", "perplexity on the worst text", where)
    if beside and beside["mean_difference"] is not None:
        points = f"{100 * beside['mean_difference']:+.1f} points"
        said = f"Over tasks its answers differ from the dense model's by {points} on average."
        known["tasks"] = said, Tile(points, "right answers in tasks", "against dense, on average")
    if predictors := found.best_predictors:
        ffns = predictors.figures["ffns"]
        named, recall, energy = (
            percent(mean(layer_means(ffns, name))) for name in ("predicted_density", "recall", "energy")
        )
        said = (
            f"Small predictors, {percent(predictors.figures.get('size_share', 0.0))} of the model's weights, name"
            f" {named} of the neurons in advance; these are {recall} of those that fire and carry {energy} of their"
            " energy."
        )
        known["predictors"] = said, Tile(energy, "of the energy foreseen", f"in {named} of the neurons")
    if shape := _shape(found):
        said, tile = shape
        known["shape"] = said, tile
    elif speedup := _speedup(found):
        said = f"Generation in {speedup[1]} mode is {speedup[0]:.2f} times as fast as computing every neuron."
        known["speed"] = said, Tile(f"{speedup[0]:.2f} ×", "as fast as dense mode", f"in {speedup[1]} mode")
    return known


def tiles(found: Findings) -> Iterator[Tile]:
    """The few figures that most readers want."""
    known = _highlights(found)
    yield from (known[name][1] for name in _TILES if name in known)
    if found.files:
        file = min(found.files, key=lambda file: file.figures["size_bytes"])
        yield Tile(size_text(file.figures["size_bytes"]), "smallest file", found.name(file.path))


def chain(found: Findings) -> Iterator[Sequence[Step]]:
    """From the dense model to the files, as columns of boxes."""
    sparse = found.sparse
    if sparse is None:
        return
    figures = sparse.figures
    what = f"dense {figures['spec']['family'].capitalize()}, SwiGLU"
    parameters = f"{_parameters(figures['parameters'])} parameters"
    yield (Step(name=found.source or "dense model", what=what, facts=(parameters,)),)
    for record in found.history:
        yield (_converted(found, record),)

    def step(record: Record, what: str, by: str, *facts: str) -> Step:
        return Step(name=found.name(record.path), what=what, facts=facts, by=by)

    beside = [
        step(record, "predictors", "predictors", f"{record.figures.get('predictor_parameters', 0):,} weights")
        for record in found.predictors[-1:]
    ]
    beside += [step(each, "profile", "profile", f"{sum(of.tokens):,} tokens") for each, of in found.profiles[-1:]]
    beside += [step(record, "importance matrix", "imatrix") for record in found.imatrices[-1:]]
    files = [
        step(file, f"for {engine(file)}", "export-gguf", size_text(file.figures["size_bytes"]))
        for file in found.files[:6]
    ]
    yield from (column for column in (beside, files) if column)


def _recovered(figures: dict[str, Any]) -> str:
    """How a checkpoint was recovered, in words; "" if it is not known."""
    recover = figures["settings"].get("recover", "")
    if recover == "full" and not layers_trained(figures):
        return "recovered as a whole"
    return _RECOVERED.get(recover, "")


def _converted(found: Findings, record: Record) -> Step:
    """One checkpoint that relufy made."""
    figures, settings = record.figures, record.figures["settings"]
    target = settings.get("training", {}).get("target_sparsity")
    tokens = (figures.get("full") or {}).get("tokens") or figures.get("tokens")
    how = _recovered(figures)
    facts = [f"{tokens:,} tokens"] if tokens else []
    facts += [f"aimed at {percent(target)} silent"] if target else []
    return Step(
        name=found.name(record.path), what=f"{_NAMES[figures['spec']['activation']]} checkpoint",
        facts=(*facts, size_text(figures["size_bytes"])), by=f"relufy, {how}",
    )  # fmt: skip


def missing(found: Findings) -> Iterator[tuple[str, str]]:
    """(figure, the command that would add it) for what the folder does not hold."""
    here = found.folder
    file = next((found.name(each.path) for each in found.files if engine(each) == "tsconvert's runner"), None)
    sparse = found.name(found.sparse.path) if found.sparse is not None else "sparse"
    if not found.of("eval"):
        against = f"--against {found.source or 'DENSE'}"
        asked = f"tsconvert eval {here / (file or sparse)} {against} --json > {here}/eval.json"
        yield "perplexity and KL divergence", asked
    if not found.profiles:
        yield "how often each neuron fires", f"tsconvert profile {here / sparse} --out {here}/profile.safetensors"
    if found.best_predictors is None:
        yield "recall and predicted density", f"tsconvert predictors {here / sparse} --out {here}/predictors"
    if file and not found.of("bench"):
        yield "speed of each mode", f"tsconvert bench {here / file} --json > {here}/bench.json"
    if found.files and not any((each.figures.get("verification") or {}).get("errors") for each in found.files):
        yield "quantization error of each tensor", "written beside each file by tsconvert export-gguf"
    layers = [layer for record in found.history for layer in record.figures.get("layers") or ()]
    trained = any(record.figures["settings"].get("recover") != "none" for record in found.history)
    if trained and not any(layer.get("curve") for layer in layers):
        yield "training curves", "kept by tsconvert relufy from this version on"
