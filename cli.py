"""The command line: which commands there are, their order, errors as one sentence, and exit codes.

A command's options and work stand in its folder's commands.py, which is imported when the command is called.
"""

import difflib
import io
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from . import __version__
from .common import command_line
from .common.errors import TsconvertError, printable
from .common.machine.address_limit import require_addresses
from .common.machine.threads import wait_briefly

COMMANDS = {
    "convert": (
        "evaluate.conversion.commands:convert",
        "Convert a model within a time: recover, export, measure, and write a card, a page and a recipe.",
    ),
    "relufy": ("convert.commands:relufy", "Replace SwiGLU by dReLU and recover the model."),
    "profile": (
        "predictors.profile.commands:profile",
        "Count how often each neuron of each layer and expert fires.",
    ),
    "predictors": (
        "predictors.commands:predictors",
        "Train small networks that predict which neurons fire, one for each FFN or expert.",
    ),
    "imatrix": (
        "quant.imatrix.commands:imatrix",
        "Measure which columns of the weights matter most, as an importance matrix in llama.cpp's form.",
    ),
    "export-gguf": (
        "evaluate.commands:export_gguf",
        "Write a model as a GGUF file for PowerInfer, llama.cpp or tsconvert's own runner.",
    ),
    "quantize": ("quant.commands:quantize", "Write a GGUF file in other types, as llama-quantize would, in one pass."),
    "run": ("runner.commands:run", "Generate text from a GGUF file."),
    "serve": ("runner.commands:serve", "Answer requests for text over HTTP, as OpenAI's API has them."),
    "bench": (
        "runner.commands:bench",
        "Measure how fast a GGUF file runs, or would: tokens per second of prompt and generation.",
    ),
    "eval": (
        "evaluate.commands:evaluate",
        "Measure perplexity, density and divergence of a checkpoint or a GGUF file, or give it tasks.",
    ),
    "verify": (
        "evaluate.verify.commands:verify",
        "Compare a GGUF file with the model that it was made from; exit code 1 if it differs.",
    ),
    "check": (
        "evaluate.check.commands:check",
        "Run a conversion with limits, for CI; exit code 1 with the lines that failed.",
    ),
    "inspect": (
        "evaluate.inspect.commands:inspect",
        "Say what a checkpoint, predictor folder, profile or GGUF file holds.",
    ),
    "plan": (
        "evaluate.plan.commands:plan",
        "Say what each stage would cost and what speed to expect, from a config.json alone.",
    ),
    "report": (
        "evaluate.report.commands:report",
        "Write one HTML page about a folder of outputs: what was made of what, figures and plots.",
    ),
    "demo": (
        "evaluate.conversion.commands:demo",
        "Run the whole chain on a small model: convert, recover, predict, export, generate.",
    ),
}
"""In the order of the chain: where each command stands, and the first sentence of its help."""
WITHOUT_TORCH = (["quantize"], ["run"], ["serve"], ["bench"], ["inspect"], ["report"])


class Chain(click.Group):
    """Commands in the order of the chain, errors as one sentence, and the exit codes that scripts count on."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Not sorted: the chain has an order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f".{module}", __package__), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Click's; an unknown command is refused with the nearest one."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Whole sentences, from the table, so that no folder is imported for the list."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Exit codes: 0 done, 1 a verification failed, 2 bad input, 130 interrupted."""
        wait_briefly()
        _open_streams()
        try:
            self._main(*args, **kwargs)
        except SystemExit as stop:
            _leave(stop.code)
            raise
        _leave(0)

    def _main(self, *args: Any, **kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("args")
        words = sys.argv[1:] if given is None else list(given)
        command_line.remember(words)
        debug, stdout = "--debug" in words, sys.stdout
        try:
            if not {"-h", "--help", "--version"} & set(words):
                require_addresses(torch=words[:1] not in WITHOUT_TORCH)
            super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.stdout.flush()
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _complain(f"interrupted{self._again(words)}")
            sys.exit(130)
        except SystemExit:
            if sys.stdout is stdout:
                raise
            sys.stdout = stdout  # click's answer to a closed pipe is another stdout and 1, "a check failed"
            _leave_pipe()
        except BrokenPipeError:
            _leave_pipe()
        except TsconvertError as error:
            if debug:
                raise
            _complain(f"error: {printable(str(error))}")
            sys.exit(error.exit_code)
        except Exception as error:
            from .common.machine.system_errors import in_words, leave_stdout

            said = None if debug else in_words(error, self._options_of(words))
            if said is None:
                raise
            leave_stdout()
            _complain(f"error: {said}{self._again(words)}")
            sys.exit(2)

    def _again(self, words: list[str]) -> str:
        return "; --resume goes on with what is finished" if "--resume" in self._options_of(words) else ""

    def _options_of(self, words: list[str]) -> set[str]:
        """All options of the command that ``words`` call."""
        name = next((word for word in words if not word.startswith("-")), "")
        command = self.get_command(click.Context(self), name)
        return {option for param in command.params for option in param.opts} if command else set()


def _open_streams() -> None:
    """Streams that are closed, as under cron, are empty ones; what a terminal's encoding lacks becomes ?."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and name == "stdout":
            stream.reconfigure(errors="replace")


def _leave_pipe() -> None:
    """Nobody reads on: the rest is not printed."""
    from .common.machine.system_errors import leave_stdout

    leave_stdout()
    sys.stderr.close()
    sys.exit(0)


def _complain(message: str) -> None:
    """On stderr, which may lie on the disk that is full."""
    with suppress(OSError):
        click.echo(message, err=True)


def _leave(code: Any) -> None:
    """One of several processes ends without taking the interpreter down."""
    if "torch.distributed" in sys.modules and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from .common.processes import exit_process

        exit_process(code if isinstance(code, int) else 0)


FIRST = """tsconvert makes dense language models sparse, and runs them.

  Convert one       tsconvert convert MODEL --out DIR --budget 1h
  Run what came out tsconvert run DIR/FILE.gguf -p "Once upon a time"
  See it all first  tsconvert demo         (a tiny embedded model, some minutes)

MODEL is a Hugging Face folder, a GGUF file for llama.cpp, a hub id, or an embedded model: tiny-mistral, tiny-mixtral.
tsconvert --help lists all commands."""


@click.group(
    cls=Chain, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)  # fmt: skip
@click.version_option(__version__, prog_name="tsconvert")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Make dense language models sparse (Llama, Mistral, Mixtral, Qwen, Gemma and others), and run them.

    \b
    At once:     convert MODEL --out DIR --budget 1h    all of the chain, within a time
    The chain:   relufy MODEL --out DIR          SwiGLU becomes dReLU, and the model is recovered
                 predictors DIR --out PRED       small networks predict which neurons fire
                 export-gguf DIR --out F.gguf    for PowerInfer, llama.cpp or tsconvert's own runner
                 run F.gguf -p PROMPT            text

    MODEL is a Hugging Face folder, a GGUF file for llama.cpp, a hub id, or an embedded model: tiny-mistral,
    tiny-mixtral.
    `tsconvert demo` runs the whole chain on an embedded model.
    """
    if ctx.invoked_subcommand is None:
        click.echo(FIRST)
