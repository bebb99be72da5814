"""The command line: parse, build a config, call one function, print. Nothing heavy is imported before it is needed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from . import __version__
from .convert.errors import TsconvertError

OUT_FOLDER = click.Path(file_okay=False, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)


class Chain(click.Group):
    """Commands in the order of the chain, errors as one sentence, and the exit codes that scripts count on."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Exit codes: 0 done, 1 a verification failed, 2 bad input, 130 interrupted."""
        debug = "--debug" in sys.argv[1:]
        try:
            super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(0)
        except TsconvertError as error:
            if debug:
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except (OSError, MemoryError) as error:
            if debug:
                raise
            click.echo(f"error: {error or type(error).__name__}", err=True)
            sys.exit(2)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command has."""
    command = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")(command)


def emit(result: Any, as_json: bool) -> None:
    """Print what a command found: ``result.to_json()`` as JSON, or ``str(result)``."""
    click.echo(json.dumps(result.to_json(), ensure_ascii=False) if as_json else str(result))


@click.group(cls=Chain, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tsconvert")
def main() -> None:
    """Turn dense Mistral and Mixtral models into sparse dReLU models, and run them.

    \b
    The chain:   relufy MODEL --out DIR          SwiGLU becomes dReLU, and the model is recovered
                 predictors DIR --out PRED       small networks that foresee which neurons fire
                 export-gguf DIR --out F.gguf    for PowerInfer, llama.cpp or tsconvert's own runner
                 run F.gguf -p PROMPT            text

    MODEL is a Hugging Face folder, a hub id, or an embedded model: tiny-mistral, tiny-mixtral.
    `tsconvert demo` runs the whole chain.
    """


def _missing(name: str, stage: str, help_text: str) -> None:
    """Register a command whose stage is not built yet: it says so and exits 2."""

    @main.command(name, help=f"{help_text} (not built yet)", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @common
    def command(arguments: tuple[str, ...], as_json: bool) -> None:  # noqa: ARG001
        raise TsconvertError(f"{name} is not built yet: this version of tsconvert lacks the {stage} stage")


_missing("imatrix", "importance matrix", "Collect an importance matrix, in llama.cpp's GGUF form.")
_missing("quantize", "GGUF requantization", "Requantize a GGUF file.")
_missing("verify", "verification", "Compare every tensor of a GGUF file with its source.")
_missing("check", "conversion check", "Run a conversion with thresholds, for CI.")
_missing("plan", "planning", "Say what each stage would cost and what speed to expect.")
_missing("report", "report", "Write one HTML page about a folder of outputs.")
