"""The command `relufy`."""

from collections.abc import Mapping
from typing import Any

import click

from ..common.commands import Asked, command, heading
from ..common.errors import TsconvertError
from ..common.options import (
    COUNT,
    DURATION,
    OUT_FOLDER,
    PRECISION,
    RANK,
    SEED,
    Rule,
    argument,
    not_with,
    only_with,
    setting,
)
from ..predictors.config import Training
from ..predictors.cost import STORED_BITS
from ..text.options import text_options
from .config import RelufyConfig
from .config.full import FullRecovery
from .config.local import SILENCED_BY, LocalRecovery
from .config.masked import JointConfig, joint_training

_COPIES = "--recover none --no-align"
_RECOVERED = only_with("--recover", "local", "full")
_SILENCED = Rule(
    lambda given: given["recover"] != "none" or given["activation"] == "tswiglu", _RECOVERED.where, _RECOVERED.instead
)
_FULL = only_with("--recover", "full")
_MASKED = only_with("--predictors")


def _swept(given: Mapping[str, Any]) -> bool:
    """Whether text goes through the layers."""
    return bool(given["recover"] != "none" or given["align"] or given["activation"] == "tswiglu")


_SWEPT = Rule(_swept, f"without {_COPIES} only, which copies the weights as they are")
_READ = Rule(
    lambda given: _swept(given) or given["shift"] is not None,
    f"without {_COPIES} only, which reads no text",
)
_COMPARED = Rule(lambda given: given["divergence"] > 0, "with a --divergence above 0 only")


# What --dry-run does not need is not refused beside it: it answers for the command line of the run to come.
@command(
    "relufy",
    argument(RelufyConfig, "model", "The dense model: a Hugging Face folder, a GGUF file for llama.cpp, a hub"
             " id, or tiny-mistral or tiny-mixtral.", "MODEL"),
    heading(
        "Output",
        setting(RelufyConfig, "out", "Folder of the sparse checkpoint; must not exist.", kind=OUT_FOLDER),
        setting(RelufyConfig, "dtype", "Type of the weights written; default: each tensor's own.",
                kind=click.Choice(["F32", "F16", "BF16"])),
        setting(RelufyConfig, "max_shard_bytes", "Largest size of one file of weights.", "--max-shard-size",
                kind=COUNT),
        setting(RelufyConfig, "resume", "Continue an interrupted run into the same --out.", rules=[_SWEPT]),
        setting(RelufyConfig, "dry_run", "Say what the run would take in memory, disk and time, and stop."),
    ),
    heading(
        "Conversion",
        setting(RelufyConfig, "activation", "Activation of the sparse model: drelu is relu(gate) * relu(up); reglu is"
                " relu(gate) * up: closer to the dense model at the same zeros, and easier to predict; tswiglu is the"
                " model's own SwiGLU or GeGLU where that is large: closest to the dense model, but not for PowerInfer's"
                " engine, nor for predictors.", kind=click.Choice(["drelu", "reglu", "tswiglu"])),
        setting(RelufyConfig, "align", "Choose each neuron's sign first, so that dReLU keeps more of what SwiGLU does.",
                "--align/--no-align"),
        setting(RelufyConfig, "recover", "local trains each layer towards the dense model's; full then trains the"
                " whole model; none trains nothing.", kind=click.Choice(["none", "local", "full"])),
        setting(RelufyConfig, "teacher", "Dense model to learn from; default: MODEL itself.", rules=[_SWEPT]),
        setting(LocalRecovery, "target_sparsity", "Share of the neurons to be silent, such as 0.9; default: no target.",
                rules=[_SILENCED]),
        setting(LocalRecovery, "silenced_by", "How: relu's threshold follows the target; or, for PowerInfer's engine,"
                " which has no thresholds, a price on each neuron that fires (count), or on how much it does (l1).",
                kind=click.Choice(SILENCED_BY), rules=[only_with("--target-sparsity")]),
        setting(LocalRecovery, "up_passes", "With tswiglu: share of the neurons, those whose ups promise the most, that"
                " may fire; exact mode then reads no other gate rows; default: six times as many as are to fire.",
                rules=[only_with("--activation", "tswiglu")]),
        setting(RelufyConfig, "shift", "At the end set thresholds below which relu gives 0, so that this share of the"
                " energy is kept, such as 0.995."),
    ),
    heading("Text", *text_options(RelufyConfig, tokens="Calibration tokens, for alignment and local recovery.",
                                  rules=[_READ])),
    heading(
        "Local recovery",
        setting(LocalRecovery, "steps", "Training steps of each layer.", kind=COUNT, rules=[_RECOVERED]),
        setting(LocalRecovery, "batch_tokens", "Tokens in a training step.", kind=COUNT, rules=[_RECOVERED]),
        setting(LocalRecovery, "learning_rate", "Peak learning rate; default: by the size of the layer's weights.",
                rules=[_RECOVERED]),
        setting(LocalRecovery, "train_attention", "Train the attention's output projection as well.",
                "--attention/--no-attention", rules=[_RECOVERED]),
        setting(RelufyConfig, "min_expert_tokens", "Train an expert that sees fewer tokens on further ones.",
                kind=COUNT, rules=[_SWEPT]),
    ),
    heading(
        "Whole model (--recover full)",
        setting(FullRecovery, "tokens", "Tokens to train on.", "--full-tokens", kind=COUNT, rules=[_FULL]),
        setting(RelufyConfig, "time_limit_s", "Time that the run may take, such as 50m: training then ends early, its"
                " learning rate gone down by then.", "--time-limit", kind=DURATION,
                rules=[_FULL, not_with("--baseline")]),
        setting(FullRecovery, "batch_tokens", "Tokens in a training step, over all processes.", "--full-batch-tokens",
                kind=COUNT, rules=[_FULL]),
        setting(FullRecovery, "micro_tokens", "Tokens that go through the model at once in one process.", kind=COUNT,
                rules=[_FULL]),
        setting(FullRecovery, "learning_rate", "Peak learning rate; default: by the size of the model's weights.",
                "--full-learning-rate", rules=[_FULL]),
        setting(FullRecovery, "cross_entropy", "Weight of the cross-entropy with the text; beside a teacher on"
                " the text's first pass only.", rules=[_FULL]),
        setting(FullRecovery, "divergence", "Weight of the divergence KL(teacher || student).", rules=[_FULL]),
        setting(FullRecovery, "likeliest", "Compute the divergence on the N tokens of the vocabulary that the teacher"
                " finds likeliest in the batch, which is quicker; 0: on all.", kind=COUNT,
                rules=[_FULL, _COMPARED, not_with("--top-logits"), not_with("--train-embeddings")]),
        setting(FullRecovery, "hidden", "Weight of the hidden states' distance from the teacher's.", rules=[_FULL]),
        setting(FullRecovery, "top_logits", "Compute the teacher's N largest logits first and keep them on disk;"
                " default: all, while training.", kind=COUNT, rules=[_FULL, not_with("--stream"), _COMPARED]),
        setting(FullRecovery, "chat", "Train on conversations (.jsonl) instead of text; only the answers are learned.",
                kind=click.Path(dir_okay=False), rules=[_FULL, not_with("--stream")]),
        setting(FullRecovery, "stream", "Read the text while training, for corpora that memory does not hold.",
                rules=[_FULL]),
        setting(FullRecovery, "baseline", "Also train the dense model on the same tokens, into OUT.baseline, to"
                " compare with.",
                rules=[_FULL]),
        setting(FullRecovery, "evaluations", "How often held-out text is evaluated and a checkpoint kept.",
                kind=COUNT, rules=[_FULL]),
        setting(FullRecovery, "patience", "Stop after this many evaluations without a better model; 0: never.",
                rules=[_FULL]),
        setting(FullRecovery, "checkpointing", "Compute activations again instead of keeping them; saves memory.",
                rules=[_FULL]),
        setting(FullRecovery, "attention_share", "Train the model to do with this share of attention's outputs, the"
                " largest of each token, such as 0.5; give export-gguf the same.", rules=[_FULL]),
        setting(FullRecovery, "train_embeddings", "Train the embeddings and the output head as well.", rules=[_FULL]),
        setting(FullRecovery, "report_to", "A logging backend of transformers, such as tensorboard. Repeatable.",
                rules=[_FULL]),
    ),
    heading(
        "Predictors (--predictors)",
        setting(JointConfig, "out", "Train predictors together with the model, under their mask, and write them into"
                " this folder.", "--predictors", kind=OUT_FOLDER, required=False, rules=[_RECOVERED]),
        setting(JointConfig, "start", "Continue these predictors of a MODEL that is sparse already.",
                "--from-predictors", kind=OUT_FOLDER, rules=[_MASKED, _FULL]),
        setting(JointConfig, "masked_share", "Share of the sequences of --recover full that see the mask.",
                rules=[_MASKED, _FULL]),
        setting(JointConfig, "rank", "Rank of each predictor (its width); auto takes 4 % of the model's weights for all"
                " of them.", kind=RANK, rules=[_MASKED, not_with("--from-predictors")]),
        setting(JointConfig, "target_energy", "Share of the activations' energy that the predicted neurons keep.",
                rules=[_MASKED]),
        setting(Training, "stored_as", "Type of the predictors in the GGUF file to come; training rounds to it.",
                kind=click.Choice(list(STORED_BITS)), rules=[_MASKED]),
    ),
    heading(
        "Machine",
        setting(LocalRecovery, "autocast", "Precision of matrix products; auto is bf16 where the device has"
                " instructions for it.", "--precision", kind=PRECISION, rules=[_SWEPT]),
        setting(RelufyConfig, "device", "Device to compute on, such as cpu or cuda.", rules=[_READ]),
        setting(RelufyConfig, "seed", "Seed of every random choice.", kind=SEED, rules=[_READ]),
    ),
)  # fmt: skip
def relufy(asked: Asked) -> None:
    """Replace SwiGLU by dReLU and recover the model.

    With --recover none --no-align the weights are copied as they are and no text is needed. Under torchrun the
    processes share the text.
    """
    from .relufy import relufy as run_relufy

    _refuse_layer_options(asked)
    joint = asked.config(JointConfig, training=joint_training(asked["stored_as"])) if asked["predictors"] else None
    training, full = asked.config(LocalRecovery), asked.config(FullRecovery)
    asked.emit(run_relufy(asked.config(RelufyConfig, training=training, full=full, predictors=joint)))


def _refuse_layer_options(asked: Asked) -> None:
    """Raise if options of the layers' training are given for a sparse MODEL, whose whole is trained at once."""
    given = asked.given("steps", "batch_tokens", "learning_rate", "attention", "min_expert_tokens")
    if asked["recover"] != "full" or not given:
        return
    from ..model.checkpoint import open_checkpoint

    if open_checkpoint(asked["model"]).spec.sparse:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise TsconvertError(
            f"{named}: {asked['model']} is sparse already, so its layers are not trained one by one; leave it out"
        )
