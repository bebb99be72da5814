"""The command `predictors`."""

import click

from ..common.commands import Asked, command, heading
from ..common.options import COUNT, OUT_FOLDER, PRECISION, RANK, SEED, argument, not_with, option, setting
from ..text.options import text_options
from .config import PredictorConfig, Training
from .cost import STORED_BITS

_TRAINED = not_with("--estimate")
_NEW = not_with("--from")


@command(
    "predictors",
    argument(PredictorConfig, "model", "The sparse model: a folder that relufy wrote, or another dReLU or ReGLU"
             " checkpoint.", "MODEL"),
    heading(
        "Output",
        setting(PredictorConfig, "out", "Folder of the predictors; must not exist. Needed without --estimate.",
                kind=OUT_FOLDER, rules=[_TRAINED]),
        option("Only try a few ranks on few tokens and layers, and say what to expect.", "--estimate", is_flag=True),
        setting(PredictorConfig, "resume", "Continue an interrupted run into the same --out.", rules=[_TRAINED]),
        setting(PredictorConfig, "dry_run", "Say what the run would take in memory, disk and time, and stop.",
                rules=[_TRAINED]),
    ),
    heading("Text", *text_options(PredictorConfig, tokens="Tokens of text to read; an eighth of them calibrates.")),
    heading(
        "Predictors",
        setting(PredictorConfig, "rank", "Rank of each predictor (its width); auto searches for the one that reads the"
                " fewest bytes.", kind=RANK, rules=[_NEW]),
        setting(PredictorConfig, "target_energy", "Share of the activations' energy that the predicted neurons keep."),
        setting(PredictorConfig, "max_loss", "Share of the perplexity that prediction may cost, such as 0.02; default:"
                " what --target-energy costs.", rules=[_TRAINED]),
        setting(PredictorConfig, "max_density", "Share of the neurons that may be predicted, such as 0.2.",
                rules=[_TRAINED]),
        setting(PredictorConfig, "budget", "Share of the model's parameters that predictors may have, such as 0.06.",
                rules=[_TRAINED, _NEW]),
        setting(PredictorConfig, "everywhere", "Make a predictor for every FFN (default for a fixed rank), or only"
                " where it saves bytes (default for auto).", "--everywhere/--where-it-pays", rules=[_TRAINED]),
        setting(PredictorConfig, "start", "Continue the predictors in this folder, at a fifth of the learning rate.",
                "--from", kind=OUT_FOLDER, rules=[_TRAINED]),
        setting(Training, "stored_as", "Type of the predictors in the GGUF file to come; training rounds to it.",
                kind=click.Choice(list(STORED_BITS))),
        setting(PredictorConfig, "model_bits", "Bits of a weight of the model in that file, such as 4.5 for Q4_0 and"
                " Q4_K; what --rank auto weighs a predictor's bytes against."),
    ),
    heading(
        "Training",
        setting(Training, "steps", "Training steps of each predictor.", kind=COUNT),
        setting(Training, "batch_tokens", "Tokens in a training step.", kind=COUNT),
        setting(Training, "learning_rate", "Peak learning rate for a model of width 128; it falls as models widen."),
    ),
    heading(
        "Machine",
        setting(Training, "autocast", "Precision of matrix products; auto is bf16 where the device has instructions"
                " for it.", "--precision", kind=PRECISION),
        setting(PredictorConfig, "device", "Device to compute on, such as cpu or cuda."),
        setting(PredictorConfig, "seed", "Seed of every random choice.", kind=SEED),
    ),
)  # fmt: skip
def predictors(asked: Asked) -> None:
    """Train small networks that predict which neurons fire, one for each FFN or expert."""
    if asked["out"] is None and not asked["estimate"]:
        raise click.UsageError("--out is missing; only --estimate goes without")
    config = asked.config(PredictorConfig, training=asked.config(Training))
    if asked["estimate"]:
        from .estimate import estimate_predictors

        asked.emit(estimate_predictors(config))
        return
    from .train import train_predictors

    asked.emit(train_predictors(config))
