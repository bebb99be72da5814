"""What happened, in a few sentences, figures and boxes; and what the folder does not say."""

from collections.abc import Iterator

from ...common.units import size_text
from ..records.eval_report import mean
from ..records.outputs import Record
from .elements import Step, Tile
from .files import engine
from .findings import Findings
from .firing import layer_means, recorded_density
from .perplexity import dense_perplexity, is_source, scores
from .svg import measured, percent

_NAMES = {"drelu": "dReLU", "reglu": "ReGLU", "swiglu": "SwiGLU"}
_HOW = {
    "none": "without training",
    "local": "recovered layer by layer",
    "full": "recovered layer by layer and then as a whole",
}


def title(found: Findings) -> str:
    """The page's name."""
    return f"{_model(found)}, made sparse" if found.sparse is not None else _model(found)


def _model(found: Findings) -> str:
    """The dense model's name; where it lies in the folder itself, the folder's."""
    demo = found.of("demo")
    if demo:
        return str(demo[0]["model"])
    inside = {found.name(record.path) for record in found.checkpoints}
    return found.source if found.source and found.source not in inside else found.folder.resolve().name


def density(found: Findings) -> float | None:
    """Mean share of neurons that fire, from the record that the density plot shows."""
    predictors = found.best_predictors
    if predictors is not None:
        return mean(layer_means(predictors.figures["ffns"], "density"))
    if found.profiles:
        return found.profiles[-1][1].density
    shares = next((score["density"] for score in found.of("eval") if score.get("density")), None)
    if shares:
        return mean(shares)
    shares = recorded_density(found.sparse) if found.sparse is not None else []
    return mean(shares) if shares else None


def quality(found: Findings) -> tuple[float, float, str] | None:
    """(dense perplexity, sparse perplexity, on what) with all firing neurons computed."""
    sparse = found.sparse
    for group in scores(found):
        dense = dense_perplexity(found, group)
        if dense is None or sparse is None:
            continue
        ours = [
            s for s in group if s.get("mode") in ("checkpoint", "dense", "exact") and not is_source(found, s["model"])
        ]
        same = [s for s in ours if found.name(s["model"]) == found.name(sparse.path)] or ours
        if same:
            return dense, float(same[-1]["perplexity"]), "text held out from training"
    if sparse is not None and sparse.figures.get("perplexity"):
        figures = sparse.figures
        return float(figures["dense_perplexity"]), float(figures["perplexity"]), "sequences kept from training"
    return None


def speedup(found: Findings) -> tuple[float, str] | None:
    """How many times as fast as dense mode the fastest mode is, and which that is."""
    best: tuple[float, str] | None = None
    for bench in found.of("bench"):
        rates = {row["mode"]: row["tokens_per_s"] for row in bench["rows"]}
        dense = rates.pop("dense", 0)
        if dense and rates:
            mode = max(rates, key=lambda name: rates[name])
            if best is None or rates[mode] / dense > best[0]:
                best = rates[mode] / dense, mode
    return best


def story(found: Findings) -> Iterator[str]:
    """The sentences; each only where its figures are known."""
    sparse = found.sparse
    if sparse is None:
        yield f"A folder of {len(found.outputs)} outputs and {sum(map(len, found.results.values()))} measurements."
        return
    figures, settings, spec = sparse.figures, sparse.figures["settings"], sparse.figures["spec"]
    experts = f" with {spec['experts']} experts a layer" if spec["experts"] else ""
    how = _HOW.get(settings.get("recover", ""), "converted")
    yield (
        f"{_model(found)}, a {spec['family'].capitalize()} model of {_parameters(figures['parameters'])} parameters in"
        f" {spec['layers']} layers{experts}, was turned from SwiGLU into {_NAMES[spec['activation']]} and {how}."
    )
    fires, found_quality = density(found), quality(found)
    if fires is not None:
        yield f"Of its FFN neurons {percent(fires)} now fire for a token; the others need not be computed."
    if found_quality is not None:
        dense, now, where = found_quality
        yield (
            f"On {where} its perplexity is {measured(now)}, where the dense model has {measured(dense)}:"
            f" {now / dense:.2f} times."
        )
    predictors = found.best_predictors
    if predictors is not None:
        ffns = predictors.figures["ffns"]
        named, recall = mean(layer_means(ffns, "predicted_density")), mean(layer_means(ffns, "recall"))
        yield (
            f"Small predictors, {percent(predictors.figures.get('size_share', 0.0))} of the model's weights, name"
            f" {percent(named)} of the neurons in advance; these are {percent(recall)} of those that fire and carry"
            f" {percent(mean(layer_means(ffns, 'energy')))} of their energy."
        )
    faster = speedup(found)
    if faster is not None:
        yield f"Generation in {faster[1]} mode is {faster[0]:.2f} times as fast as computing every neuron."


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:,.1f} million"


def tiles(found: Findings) -> Iterator[Tile]:
    """The few figures that most readers want."""
    found_quality, fires, faster = quality(found), density(found), speedup(found)
    if found_quality is not None:
        dense, now, _ = found_quality
        yield Tile(value=f"{now / dense:.2f} ×", label="perplexity", note=f"{measured(now)}, dense {measured(dense)}")
    if fires is not None:
        yield Tile(value=percent(fires), label="of the neurons fire", note="mean over layers")
    predictors = found.best_predictors
    if predictors is not None:
        ffns = predictors.figures["ffns"]
        energy = mean(layer_means(ffns, "energy"))
        note = f"in {percent(mean(layer_means(ffns, 'predicted_density')))} of the neurons"
        yield Tile(value=percent(energy), label="of the energy foreseen", note=note)
    if faster is not None:
        yield Tile(value=f"{faster[0]:.2f} ×", label="as fast as dense mode", note=f"in {faster[1]} mode")
    if found.files:
        smallest = min(found.files, key=lambda file: file.figures["size_bytes"])
        yield Tile(
            value=size_text(smallest.figures["size_bytes"]), label="smallest file", note=found.name(smallest.path)
        )


def chain(found: Findings) -> Iterator[tuple[Step, ...]]:
    """From the dense model to the files, as columns of boxes."""
    sparse = found.sparse
    if sparse is None:
        return
    figures, spec = sparse.figures, sparse.figures["spec"]
    source = found.source or "dense model"
    what = f"dense {spec['family'].capitalize()}, SwiGLU"
    yield (Step(name=source, what=what, facts=(f"{_parameters(figures['parameters'])} parameters",)),)
    for record in found.history:
        yield (_converted(found, record),)
    beside = [
        Step(
            name=found.name(record.path),
            what="predictors",
            facts=(f"{record.figures.get('predictor_parameters', 0):,} weights",),
            by="predictors",
        )
        for record in found.predictors[-1:]
    ]
    beside += [
        Step(name=found.name(record.path), what="profile", facts=(f"{sum(profile.tokens):,} tokens",), by="profile")
        for record, profile in found.profiles[-1:]
    ]
    beside += [
        Step(name=found.name(record.path), what="importance matrix", by="imatrix") for record in found.imatrices[-1:]
    ]
    if beside:
        yield tuple(beside)
    if found.files:
        yield tuple(
            Step(
                name=found.name(file.path),
                what=f"for {engine(file)}",
                facts=(size_text(file.figures["size_bytes"]),),
                by="export-gguf",
            )
            for file in found.files[:6]
        )


def _converted(found: Findings, record: Record) -> Step:
    """One checkpoint that relufy made."""
    figures, settings = record.figures, record.figures["settings"]
    whole = figures.get("full") or {}
    aim = settings.get("training", {}).get("target_sparsity")
    tokens = whole.get("tokens") or figures.get("tokens")
    facts = [f"{tokens:,} tokens"] if tokens else []
    facts += [f"aimed at {percent(aim)} silent"] if aim else []
    return Step(
        name=found.name(record.path), what=f"{_NAMES[figures['spec']['activation']]} checkpoint",
        facts=(*facts, size_text(figures["size_bytes"])), by=f"relufy, {_HOW.get(settings.get('recover', ''), '')}",
    )  # fmt: skip


def missing(found: Findings) -> Iterator[tuple[str, str]]:
    """(figure, the command that would add it) for what the folder does not hold."""
    here = found.folder
    file = next((found.name(each.path) for each in found.files if engine(each) == "tsconvert's runner"), None)
    sparse = found.name(found.sparse.path) if found.sparse is not None else "sparse"
    dense = found.source or "DENSE"
    if not found.of("eval"):
        yield (
            "perplexity and KL divergence",
            f"tsconvert eval {here / (file or sparse)} --against {dense} --json > {here}/eval.json",
        )
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
