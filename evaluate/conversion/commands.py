"""The commands `convert` and `demo`."""

import click

from ...common.commands import Asked, command, heading
from ...common.options import (
    DURATION,
    OUT_FOLDER,
    PATH,
    SEED,
    Pair,
    argument,
    not_with,
    only_with,
    option,
    setting,
)
from ...text.options import Data
from .config import ConvertConfig, DemoConfig

_PLANNED = [not_with("--recipe")]
_DATA = "DATA[=WEIGHT]"


@command(
    "convert",
    argument(ConvertConfig, "model", "The dense model: a Hugging Face folder, a GGUF file for llama.cpp, a hub id, or"
             " tiny-mistral or tiny-mixtral; with --recipe in place of the recipe's.", "[MODEL]", required=False),
    heading(
        "Output",
        setting(ConvertConfig, "out", "Folder of all outputs; must not exist.", kind=OUT_FOLDER),
        setting(ConvertConfig, "budget_s", "Time that it may take, such as 10m or 1h30m.", "--budget", kind=DURATION,
                rules=_PLANNED),
        setting(ConvertConfig, "recipe", "Run the stages of this file (docs/check.md) instead of planning some.",
                kind=PATH),
        option("Value of one of the recipe's [variables]. Repeatable.", "--set", multiple=True, kind=Pair(),
               metavar="NAME=VALUE", rules=[only_with("--recipe")]),
        setting(ConvertConfig, "resume", "Go on with an interrupted conversion, with the time that it has left."),
        setting(ConvertConfig, "dry_run", "Say the plan and stop.", rules=_PLANNED),
    ),
    heading(
        "Conversion",
        setting(ConvertConfig, "activation", "tswiglu: SwiGLU with thresholds, for exact mode; close to the dense model"
                " after an hour, and runs in llama.cpp as well (densely). drelu: the paper's; most neurons are exactly"
                " zero, predictors foresee which, also in PowerInfer, and it runs fastest, but takes far more training"
                " to be as close. reglu: relu on the gate alone; runs in llama.cpp as well.",
                kind=click.Choice(["tswiglu", "drelu", "reglu"]), rules=_PLANNED),
        setting(ConvertConfig, "target_sparsity", "Share of the neurons to be silent.", rules=_PLANNED),
        setting(ConvertConfig, "up_passes", "With tswiglu: share of the neurons, those whose ups promise the most, that"
                " may fire; exact mode then reads no other gate rows. 1 is closest to the dense model and reads the"
                " most; default: six times as many as are to fire.",
                rules=[*_PLANNED, only_with("--activation", "tswiglu")]),
        setting(ConvertConfig, "type_name", "Type of the GGUF file, as for export-gguf; default: Q8_0 below a billion"
                " weights, else Q4_0.", "--type", rules=_PLANNED),
        setting(ConvertConfig, "predictors", "Train predictors along, for predicted mode; not under tswiglu.",
                "--predictors/--no-predictors", rules=[*_PLANNED, only_with("--activation", "drelu", "reglu")]),
    ),
    heading(
        "Text",
        setting(ConvertConfig, "data", "Text to recover on, like that which the model is for: files, folders, a mixture"
                " (.toml), a data set, or self, the model's own. Repeatable.", kind=Data(), metavar=_DATA,
                rules=_PLANNED),
        setting(ConvertConfig, "judge", "Text to judge by that --data does not hold; default: the embedded held-out"
                " text. Repeatable.", kind=Data(), metavar="DATA", rules=_PLANNED),
        setting(ConvertConfig, "seed", "Seed of every random choice.", kind=SEED, rules=_PLANNED),
    ),
)  # fmt: skip
def convert(asked: Asked) -> None:
    """Convert a model within a time: recover, export, measure, and write a card, a page and a recipe.

    It measures this machine, says what fits into the time, and does it; all that other commands can do, in their
    default form. OUT then holds sparse/ (the checkpoint, with its card), the GGUF file, predictors/, report.html,
    recipe.toml, and what each stage found.
    """
    from .run import convert as run_convert

    found = run_convert(asked.config(ConvertConfig, variables=dict(asked["set"])))
    asked.emit(found)
    found.require()


@command(
    "demo",
    heading(
        "Demo",
        setting(DemoConfig, "model", "An embedded model, a checkpoint folder, or `smollm2`."),
        setting(DemoConfig, "out", "Folder of all outputs; must not exist.", kind=OUT_FOLDER),
        setting(DemoConfig, "resume", "Go on with an interrupted demo."),
    ),
)
def demo(asked: Asked) -> None:
    """Run the whole chain on a small model: convert, recover, predict, export, generate."""
    from .demo import demo as run_demo

    found = run_demo(asked.config(DemoConfig))
    asked.emit(found)
    found.require()
