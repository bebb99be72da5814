"""A conversion as a recipe: what was planned, and at the end what was done, with limits for `check`."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ...embedded import NAMES
from .plan import Plan, Step

_ROOM = 1.05  # of a figure that was found, which `check` allows
_PERPLEXITY, _DENSITY = "perplexity_ratio", "mean_density"


def recipe_text(name: str, model: str, steps: Sequence[Step], limits: Mapping[str, Mapping[str, str]] = {}) -> str:
    """The file's text.

    Args:
        limits: of each stage, a figure's limit as TOML.
    """
    from pathlib import Path

    path = Path(model)
    where = str(path.resolve()) if model not in NAMES and path.exists() else model
    lines = [
        f"# Written by tsconvert {version('tsconvert')}.",
        "#   tsconvert convert --recipe recipe.toml --out AGAIN    does it again",
        "#   tsconvert check recipe.toml                           does it again and holds it to the limits below",
        "format = 1",
        f"name = {_string(name)}",
        'out = "check-out"',
        "",
        "[variables]",
        f"model = {_string(where)}",
        "",
        "[stages]",
    ]
    lines += [f"{step.name} = {_string(step.line)}" for step in steps]
    for stage, figures in limits.items():
        lines += ["", f"[limits.{stage}]", *(f"{figure} = {limit}" for figure, limit in figures.items())]
    return "\n".join(lines) + "\n"


def as_done(name: str, model: str, plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The recipe of a finished conversion: tokens in place of a time, and limits around what it found."""
    steps = [
        Step(name=step.name, line=_done(step.line, results[step.name]), time_s=0.0)
        for step in plan.steps
        if not results[step.name].get("left_out")
    ]
    limits: dict[str, dict[str, str]] = {}
    for step in steps:
        found, figures = results[step.name], dict[str, str]()
        if isinstance(found.get(_PERPLEXITY), float):
            figures[_PERPLEXITY] = f"{{ max = {found[_PERPLEXITY] * _ROOM:.4g} }}"
        if isinstance(found.get(_DENSITY), float) and step.name != "dense":
            figures[_DENSITY] = f"{{ max = {min(1.0, found[_DENSITY] * _ROOM):.4g} }}"
        if isinstance(found.get("verification"), dict):
            figures["verification.passed"] = "{ equal = true }"
        if figures:
            limits[step.name] = figures
    return recipe_text(name, model, steps, limits)


def _done(line: str, found: Mapping[str, Any]) -> str:
    """The command, with the tokens that the whole model was trained on in place of its time."""
    words = line.split(" ")
    full = found.get("full")
    if "--time-limit" in words and full:
        at = words.index("--time-limit")
        del words[at : at + 2]
        words[words.index("--full-tokens") + 1] = str(full["tokens"])
    return " ".join(words)


def _string(text: str) -> str:
    """A TOML string; JSON's is one."""
    return json.dumps(text, ensure_ascii=False)
