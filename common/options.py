"""What the commands' options have in common: kinds of values, and options that several commands or one stage share.

Click alone is imported, for `--help` goes through here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .errors import TsconvertError


class Count(click.ParamType):  # type: ignore[type-arg]
    """A number with an optional K, M, G or B."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; what is none is a usage error."""
        from .units import parse_count

        try:
            return value if isinstance(value, int) else parse_count(value)
        except TsconvertError as error:
            self.fail(str(error), param, ctx)


class Rank(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or auto."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number, None for auto; what is neither is a usage error."""
        if value is None or value == "auto":
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a whole number", param, ctx)


class Precision(click.Choice):  # type: ignore[type-arg]
    """bf16, f32, or what suits the device; the value is whether to use bfloat16, None to find out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | None:
        """True, False or None; another word is a usage error."""
        return {"auto": None, "bf16": True, "f32": False}[super().convert(value, param, ctx)]


COUNT = Count()
OUT_FOLDER = click.Path(file_okay=False, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)

stored_as = click.option(
    "--stored-as",
    type=click.Choice(["F16", "Q8_0", "Q4_0"]),
    default="F16",
    show_default=True,
    help="The predictors' type in the GGUF file to come; they are trained so rounded.",
)
precision = click.option(
    "--precision",
    "autocast",
    type=Precision(["auto", "bf16", "f32"]),
    default="auto",
    show_default=True,
    help="Of matrix products in training; auto: bf16 where the device has instructions for it.",
)
FULL_OPTIONS = (
    "full_tokens", "full_batch_tokens", "micro_tokens", "full_learning_rate", "cross_entropy", "divergence", "hidden",
    "top_logits", "stream", "chat", "baseline", "evaluations", "patience", "checkpointing",
    "train_embeddings", "report_to",
)  # fmt: skip


def full_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of --recover full, in the order in which help shows them."""
    for option in reversed(
        [
            click.option(
                "--full-tokens", type=COUNT, default="2M", show_default=True, help="full: tokens to train on."
            ),
            click.option(
                "--full-batch-tokens", type=COUNT, default=2048, show_default=True, help="full: tokens a step."
            ),
            click.option("--micro-tokens", type=COUNT, default=2048, show_default=True, help="full: tokens at a time."),
            click.option("--full-learning-rate", type=float, help="full: default by the model's width."),
            click.option(
                "--cross-entropy", type=float, default=1.0, show_default=True, help="full: weight of the text."
            ),
            click.option(
                "--divergence", type=float, default=1.0, show_default=True, help="full: weight of KL(teacher)."
            ),
            click.option(
                "--hidden", type=float, default=0.0, show_default=True, help="full: weight of hidden states' distance."
            ),
            click.option("--top-logits", type=COUNT, help="full: the teacher's N largest, kept on disk; default: all."),
            click.option(
                "--chat", type=click.Path(dir_okay=False), help="full: conversations, .jsonl; answers are learnt."
            ),
            click.option("--stream", is_flag=True, help="full: text is read while training, for endless corpora."),
            click.option("--baseline", is_flag=True, help="full: train the dense model on the same tokens as well."),
            click.option(
                "--evaluations", type=COUNT, default=10, show_default=True, help="full: looks at held-out text."
            ),
            click.option(
                "--patience", type=int, default=0, show_default=True, help="full: stop after so many without a gain."
            ),
            click.option("--checkpointing", is_flag=True, help="full: compute activations again, for less memory."),
            click.option("--train-embeddings", is_flag=True, help="full: embeddings and output head as well."),
            click.option("--report-to", multiple=True, help="full: transformers' logging backends, tensorboard..."),
        ]
    ):
        command = option(command)
    return command


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command has."""
    command = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")(
        command
    )
