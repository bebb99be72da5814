"""Logits of the runner against transformers', on a few prompts: as they are, at far positions, beyond a sliding window.

transformers computes by its own reading of the checkpoint (reference.py) with the weights as the file has them: that
they are the source's is shown tensor by tensor, and what is left to show is that the file's keys and layouts mean the
same arithmetic. So the runner is compared on the decoded weights, where it rounds nothing, and then as it runs them.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from ...common.errors import TsconvertError
from ...common.machine.threads import cores
from ...model.checkpoint import Checkpoint
from ...model.files.gguf import ggml
from ...model.files.gguf.file import GgufFile, GgufTensor
from ...model.tensor_names import FFN, UP_SCALE, Place, shape_of
from ...runner.files.model_file import ModelFile, open_model
from ...runner.model import Model
from .expected_tensors import Expected, Floats, Orders, Part, expected_tensors, factors_of, rope_order, turned_roles
from .type_bounds import FLOAT_TYPES

PROMPTS = (
    "The history of the sea is told by those who came back, and what they tell is seldom what they saw on the way.",
    "def area(width, height):\n    if width < 0 or height < 0:\n        raise ValueError('negative')\n    return width",
    "In 1848 there were 23 railways; by 1900 — half a century later — “naïve” plans had become 30,000 km of track.",
)
_TOKENS = 24
# Relative difference of the logits. On decoded weights right files lie at 1e-6 to 1e-5, at far positions at 1e-3
# (transformers' angles, in float32, are good to a thousandth there); as they run, quantized, at 0.01 to 0.1 (30 layers
# whose activations are rounded to 8 bits). A wrong rope, activation or matrix lies at 0.1 and more.
_BOUND, _FAR_BOUND, _QUANTIZED_BOUND = 0.001, 0.01, 0.25
# With thresholds, which neurons near them fire changes with the smallest difference, and some of the logits with
# them, though not the perplexity: where a few neurons of 3 million cross theirs by float32's last digit SmolLM2 at 88
# % zeros is off by 0.0017 of the spread and Gemma 3 at 80 % by 0.025; SmolLM2 in Q8_0 by 0.49 (30.5 where float32 has
# 30.9). One that crosses in a first layer changes all that comes behind its token, as rounding to 8 bits would
# (0.28), not what is before it. So all is tried without thresholds; with them the file must be five times nearer than
# if all neurons fired. Where its arithmetic rounds, or some positions agree, which other thresholds leave none of in
# a model of many neurons, it must be nearer than the logits of another text.
_CROSSED_SHARE, _THRESHOLD_BOUND = 0.2, 1.0
_UNCROSSED, _MANY_NEURONS = 0.1, 10_000  # of the positions: those before the first crossing; of all layers
_FAR = 8192
_AS_IT_RUNS = "as it runs"
_SMALL_WINDOW = 8


@dataclass(frozen=True, kw_only=True)
class LogitsResult:
    """How the runner's logits compare with transformers'."""

    prompts: int = 0
    tokens: int = 0
    difference: float = 0.0
    """Root mean square of the difference over that of the logits around their mean; the worst prompt's, as it runs."""
    agreement: float = 0.0
    """Share of the positions with the same first choice."""
    whole: bool = False
    """transformers loaded all of the model; or else its modules were filled one by one with tsconvert's tensors."""
    arithmetic: dict[str, float] = field(default_factory=dict)
    """Trial -> the difference on the decoded weights; on the file's own where those do not fit into memory."""
    problem: str = ""
    skipped: str = ""
    """Why nothing was compared."""


def compare_logits(
    file: GgufFile, checkpoint: Checkpoint, orders: Orders, dialect: str, hf: Any, free_bytes: int | None = None
) -> LogitsResult:
    """Run the prompts through both; see the module.

    Args:
        hf: the checkpoint's tokenizer.
        free_bytes: of memory; None asks the system.
    """
    spec, free = checkpoint.spec, psutil.virtual_memory().available if free_bytes is None else free_bytes
    needs = 4 * max(spec.vocab * spec.width, (3 * spec.neurons * spec.ffns + 4 * spec.width) * spec.width) * 2
    if needs > free:
        skipped = f"skipped, one layer needs {needs / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
        return LogitsResult(skipped=skipped)
    encoded = [hf.encode(prompt) for prompt in PROMPTS]
    whole = 2 * 4 * spec.parameters + needs < free
    try:
        source = open_model(file.path)
        length = min(_TOKENS, source.spec.context, *map(len, encoded))
        rows_NS = np.array([ids[:length] for ids in encoded], np.int64)
        return _compare(source, checkpoint, DecodedWeights(checkpoint, file, orders, dialect), rows_NS, whole=whole)
    except TsconvertError as error:
        return LogitsResult(problem=str(error).removeprefix(f"{file.path}: "))


def _compare(
    source: ModelFile, checkpoint: Checkpoint, decoded: "DecodedWeights", rows_NS: npt.NDArray[np.int64], *, whole: bool
) -> LogitsResult:
    import torch

    from .reference import Reference

    reference = Reference(checkpoint, decoded.array, whole=whole, thresholds=source.dialect == "sparse")
    thresholds = source.dialect == "sparse" and bool(source.spec.thresholds)
    floats = {tensor.type_name for tensor in source.tensors.values()} <= {*FLOAT_TYPES}
    plain = source if floats or not whole else _decoded(source)
    rounds = plain is source and not floats
    length = rows_NS.shape[1]
    stride = _stride(source, length)
    rows_T, ahead_NS = torch.from_numpy(rows_NS), torch.arange(length).repeat(len(rows_NS), 1)
    near = reference.logits(rows_T, ahead_NS)
    shipped = _run(source, rows_NS)
    as_shipped = _difference(shipped, near)
    bound, far_bound = (_QUANTIZED_BOUND, _QUANTIZED_BOUND) if rounds else (_BOUND, _FAR_BOUND)
    trials = []
    wanted, steady = near, shipped
    if thresholds:
        fired = shipped if plain is source else _run(plain, rows_NS)
        crossed, agrees = _difference(fired, near), np.quantile(_by_position(fired, near), _UNCROSSED) <= _BOUND
        agrees &= source.spec.layers * source.spec.neurons >= _MANY_NEURONS
        reference.let_all_fire()
        wanted, plain = reference.logits(rows_T, ahead_NS), _all_fire(plain)
        steady = _run(_all_fire(source), rows_NS)
        nearer = max(_BOUND, _CROSSED_SHARE * _difference(wanted, near))
        most = _THRESHOLD_BOUND if rounds or agrees else nearer
        trials.append(("text, with its thresholds", crossed, most))
    found = steady if floats or rounds else _run(plain, rows_NS)
    trials.append(("text", _difference(found, wanted), bound))
    heeded = None
    if reference.window:
        small = min(_SMALL_WINDOW, max(1, length // 3))
        windowed = reference.logits(rows_T, ahead_NS, window=small)
        heeded = reference.window if (windowed != wanted).any() else None
        if heeded and source.spec.sliding_window:
            narrow = replace(plain, spec=replace(plain.spec, sliding_window=small))
            trials.append((f"a window of {small}", _difference(_run(narrow, rows_NS), windowed), bound))
    if stride > 1:
        ropes = {name: replace(getattr(plain, name), stride=stride) for name in ("rope", "local_rope")}
        off = _difference(_run(replace(plain, **ropes), rows_NS), reference.logits(rows_T, stride * ahead_NS))
        trials.append((f"positions to {stride * (length - 1)}", off, far_bound))
    if not floats:  # activations are rounded where weights are quantized
        trials.append((_AS_IT_RUNS, _difference(steady, wanted), _QUANTIZED_BOUND))
        if thresholds:
            trials.append((f"{_AS_IT_RUNS}, with its thresholds", as_shipped, _THRESHOLD_BOUND))
    wrong = _window_problem(source, heeded) + [
        f"the runner's logits differ from transformers' by {off:.3g}, over {bound:g} ({trial})"
        for trial, off, bound in trials
        if off > bound
    ]
    return LogitsResult(
        prompts=len(rows_NS), tokens=rows_NS.size, difference=as_shipped, whole=whole,
        agreement=float((shipped.argmax(axis=-1) == near.argmax(axis=-1)).mean()),
        arithmetic={trial: off for trial, off, _ in trials if not trial.startswith(_AS_IT_RUNS)},
        problem=wrong[0] if wrong else "",
    )  # fmt: skip


def _stride(source: ModelFile, length: int) -> int:
    """How far apart positions are tried: up to the end of the context, far beyond the original one of a scaled rope."""
    if source.spec.attention_temperature:  # which grows with the number of a token
        return 1
    most = min(source.spec.context - 1, max(_FAR, 2 * source.rope.original_context))
    return max(1, most // max(1, length - 1))


def _window_problem(source: ModelFile, window: int | None) -> list[str]:
    """Where transformers' sliding window is another one, within the file's context."""
    context = source.spec.context
    theirs, ours = (w if w and w < context else None for w in (window, source.spec.sliding_window))
    if theirs == ours:
        return []
    return [
        f"in the file's context of {context} tokens the runner's sliding window is {ours} and transformers' {theirs}"
    ]


def _run(source: ModelFile, rows_NS: npt.NDArray[np.int64]) -> Floats:
    """The runner's logits [N, S, V]."""
    mode = "exact" if source.spec.sparse else "dense"
    with Model(source, threads=cores(), mode=mode, context=rows_NS.shape[1], cache_type="F32") as model:
        return np.stack([model.logits(row_S.tolist()) for row_S in rows_NS])


def _all_fire(source: ModelFile) -> ModelFile:
    """The file without thresholds."""
    return replace(source, spec=replace(source.spec, thresholds=(), up_thresholds=()))


def _difference(found_NSV: Floats, wanted_NSV: Floats) -> float:
    """Root mean square of the difference over that of the logits around their mean; the worst prompt's."""
    off = [_relative(found_SV, wanted_SV) for found_SV, wanted_SV in zip(found_NSV, wanted_NSV, strict=True)]
    return max(off) if np.isfinite(off).all() else float("inf")


def _by_position(found_NSV: Floats, wanted_NSV: Floats) -> list[float]:
    """The same of each position alone."""
    every = (logits_NSV.reshape(-1, 1, logits_NSV.shape[-1]) for logits_NSV in (found_NSV, wanted_NSV))
    return [_relative(*pair) for pair in zip(*every, strict=True)]


def _relative(found_SV: Floats, wanted_SV: Floats) -> float:
    spread = float(np.linalg.norm(wanted_SV - wanted_SV.mean(axis=1, keepdims=True)))
    return float(np.linalg.norm(found_SV - wanted_SV)) / max(spread, 1e-30)


def _decoded(source: ModelFile) -> ModelFile:
    """The file with its weights as float32, in memory."""

    def plain(tensor: GgufTensor) -> GgufTensor:
        if tensor.type_name in FLOAT_TYPES:
            return tensor
        return replace(tensor, type_name="F32", raw=tensor.to_float32().reshape(-1).view(np.uint8))

    return replace(source, tensors={place: plain(tensor) for place, tensor in source.tensors.items()})


class DecodedWeights:
    """A GGUF file's weights in Hugging Face's layout and order, as float32."""

    def __init__(self, source: Checkpoint, file: GgufFile, orders: Orders, dialect: str) -> None:
        self._spec, self._file, self._orders = source.spec, file, orders
        self._at: dict[Place, tuple[Expected, int]] = {}
        for expected in expected_tensors(self._spec, dialect, factors_of(file), turned_roles(file, dialect)):
            for number, part in enumerate(expected.parts):
                self._at.setdefault(part.place, (expected, number))

    def array(self, place: Place) -> Floats:
        """The weights at ``place``."""
        if place == Place("output") and self._spec.tied:
            place = Place("token_embd")
        expected, number = self._at[place]
        part, first = expected.parts[number], expected.first_row(number)
        tensor = self._file.tensors[expected.name]
        raw_RB = tensor.raw.reshape(-1, ggml.row_bytes(tensor.type_name, expected.shape[-1]))
        piece = raw_RB[first : first + part.rows].reshape(-1)
        stored_RC = ggml.dequantize(piece, tensor.type_name, (part.rows, expected.shape[-1])) / np.float32(part.factor)
        restored = self._restored(stored_RC - np.float32(part.offset), part, transposed=expected.transposed)
        return np.ascontiguousarray(restored).reshape(shape_of(self._spec, place))

    def _restored(self, stored_RC: Floats, part: Part, *, transposed: bool) -> Floats:
        place, spec = part.place, self._spec
        if place.role == UP_SCALE:
            orders = (self._orders.get((place.layer or 0, expert)) for expert in range(len(stored_RC)))
            return np.stack(
                [
                    row_F if order is None else row_F[np.argsort(order)]
                    for row_F, order in zip(stored_RC, orders, strict=True)
                ]
            )
        order_F = self._orders.get((place.layer or 0, place.expert or 0))
        vector = len(shape_of(spec, place)) == 1
        if part.heads:
            size = shape_of(spec, place)[0] // part.heads
            back = np.argsort(rope_order(part.heads, size, spec.rope_dim or size))
            return stored_RC[:, back] if vector else stored_RC[back]
        if place.role.removesuffix("_bias") not in FFN or order_F is None or place.role == "ffn_down_bias":
            return stored_RC.T if transposed else stored_RC
        if vector or (place.role == "ffn_down" and not transposed):
            return stored_RC[:, np.argsort(order_F)]
        rows_FD = stored_RC[np.argsort(order_F)]
        return rows_FD.T if transposed else rows_FD
