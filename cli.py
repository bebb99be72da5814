"""The command line: parse, build a config, call one function, print. Nothing heavy is imported before it is needed."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from . import __version__
from .common import command_line
from .common.address_limit import require_addresses
from .common.errors import TsconvertError, printable
from .common.options import (
    COUNT,
    FULL_OPTIONS,
    OUT_FILE,
    OUT_FOLDER,
    PATH,
    Rank,
    common,
    full_options,
    precision,
    stored_as,
)
from .common.torch_threads import wait_briefly

ORDER = (
    "relufy", "profile", "predictors", "imatrix", "export-gguf", "quantize", "run", "bench", "eval", "verify", "check",
    "inspect", "plan", "report", "demo",
)  # fmt: skip

WITHOUT_TORCH = (["quantize"], ["run"], ["bench"], ["inspect"], ["report"])


class Chain(click.Group):
    """Commands in the order of the chain, errors as one sentence, and the exit codes that scripts count on."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Not sorted: the chain has an order."""
        return [name for name in ORDER if name in self.commands]

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Exit codes: 0 done, 1 a verification failed, 2 bad input, 130 interrupted."""
        wait_briefly()
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
        debug = "--debug" in words
        options = self._options_of(words)
        again = "; --resume goes on with what is finished" if "--resume" in options else ""
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
            _complain(f"interrupted{again}")
            sys.exit(130)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(0)
        except TsconvertError as error:
            if debug:
                raise
            _complain(f"error: {printable(str(error))}")
            sys.exit(error.exit_code)
        except Exception as error:
            from .common.system_errors import in_words, leave_stdout

            said = None if debug else in_words(error, options)
            if said is None:
                raise
            leave_stdout()
            _complain(f"error: {said}{again}")
            sys.exit(2)

    def _options_of(self, words: list[str]) -> set[str]:
        """All options of the command that ``words`` call."""
        command = self.commands.get(next((word for word in words if not word.startswith("-")), ""))
        return {option for param in command.params for option in param.opts} if command else set()


def _complain(message: str) -> None:
    """On stderr, which may lie on the disk that is full."""
    with suppress(OSError):
        click.echo(message, err=True)


def _leave(code: Any) -> None:
    """One of several processes ends without taking the interpreter down."""
    if "torch.distributed" in sys.modules and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from .common.processes import exit_process

        exit_process(code if isinstance(code, int) else 0)


def emit(result: Any, as_json: bool) -> None:
    """Print what a command found: ``result.to_json()`` and the command as JSON, or ``str(result)``."""
    from .common.progress import speaks

    if speaks():
        command = {"command": command_line.typed()}
        click.echo(json.dumps({**result.to_json(), **command}, ensure_ascii=False) if as_json else str(result))


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


@main.command()
@click.argument("model")
@click.option("--out", type=OUT_FOLDER, required=True, help="Folder of the sparse checkpoint; must not exist.")
@click.option("--activation", type=click.Choice(["drelu", "reglu"]), default="drelu", show_default=True)
@click.option(
    "--recover",
    type=click.Choice(["none", "local", "full"]),
    default="local",
    show_default=True,
    help="local: train each layer towards the dense one; full: then the whole model.",
)
@click.option("--data", multiple=True, help="Text, .jsonl, .parquet, a folder, or a data set; =WEIGHT. Repeatable.")
@click.option("--tokens", type=COUNT, default="64K", show_default=True, help="Calibration tokens.")
@click.option("--context", type=COUNT, default=512, show_default=True, help="Tokens a sequence.")
@click.option("--steps", type=COUNT, default=200, show_default=True, help="Training steps a layer.")
@click.option("--batch-tokens", type=COUNT, default=2048, show_default=True, help="Tokens a step.")
@click.option("--learning-rate", type=float, help="Default: by the model's width, 6e-3 up to 576.")
@click.option(
    "--attention/--no-attention", default=True, show_default=True, help="Train the attention's output as well."
)
@click.option("--target-sparsity", type=float, help="Share of neurons to be silent, such as 0.9.")
@precision
@click.option(
    "--min-expert-tokens",
    type=COUNT,
    default=0,
    show_default=True,
    help="Train an expert that sees fewer on further tokens.",
)
@click.option("--teacher", help="Dense model to learn from, if not MODEL itself.")
@full_options
@click.option("--predictors", type=OUT_FOLDER, help="Train predictors along, into this folder: mask in the loop.")
@click.option("--from-predictors", type=OUT_FOLDER, help="full, of a MODEL that is sparse already: its predictors.")
@click.option("--masked-share", type=float, default=0.9, show_default=True, help="full: sequences that see the mask.")
@click.option(
    "--rank",
    type=Rank(),
    default="auto",
    show_default=True,
    help="Their width; auto: 4 % of the model's weights in all.",
)
@click.option(
    "--target-energy",
    type=float,
    default=0.98,
    show_default=True,
    help="Share of the activation energy that they keep.",
)
@stored_as
@click.option("--shift", type=float, help="Last step: thresholds below which relu gives 0, keeping so much energy.")
@click.option("--align/--no-align", default=True, show_default=True, help="Choose each neuron's sign first.")
@click.option("--dtype", type=click.Choice(["F32", "F16", "BF16"]), help="Of the output; default: as it is.")
@click.option("--max-shard-size", type=COUNT, default="5G", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run into the same --out.")
@click.option("--dry-run", is_flag=True, help="Say what it would take (memory, disk, time), and stop.")
@common
def relufy(
    model: str, as_json: bool, recover: str, data: tuple[str, ...], max_shard_size: int, predictors: Path | None,
    from_predictors: Path | None, masked_share: float, rank: int | None, target_energy: float, stored_as: str,
    **options: Any,
) -> None:  # fmt: skip
    """Replace SwiGLU by dReLU, relu(gate) * relu(up), and recover the model.

    With --recover none --no-align the weights are copied as they are and no text is needed. Under torchrun the
    processes share the text.
    """
    from .convert.config import RelufyConfig
    from .convert.full.config import FullRecovery
    from .convert.local.config import LocalRecovery
    from .convert.masked.config import JointConfig, joint_training
    from .convert.relufy import relufy as run_relufy
    from .text.sources import parse_source

    training = LocalRecovery(
        steps=options.pop("steps"),
        batch_tokens=options.pop("batch_tokens"),
        learning_rate=options.pop("learning_rate"),
        train_attention=options.pop("attention"),
        target_sparsity=options.pop("target_sparsity"),
        autocast=options.pop("autocast"),
    )
    sources = tuple(parse_source(argument) for argument in data)
    full = FullRecovery(**{name.removeprefix("full_"): options.pop(name) for name in FULL_OPTIONS})
    joint = None if predictors is None else JointConfig(
        out=predictors, start=from_predictors, masked_share=masked_share, rank=rank, target_energy=target_energy,
        training=joint_training(stored_as),
    )  # fmt: skip
    config = RelufyConfig(
        model=model, recover=recover, data=sources, training=training, full=full, max_shard_bytes=max_shard_size,
        predictors=joint, **options,
    )  # fmt: skip
    emit(run_relufy(config), as_json)


@main.command()
@click.argument("model")
@click.option("--out", type=OUT_FILE, help="The profile, one .safetensors file; must not exist.")
@click.option("--data", multiple=True, help="One corpus each: text, .jsonl, .parquet, a folder, a data set; =WEIGHT.")
@click.option("--tokens", type=COUNT, default="64K", show_default=True, help="Tokens of all corpora together.")
@click.option("--context", type=COUNT, default=512, show_default=True, help="Tokens a sequence.")
@click.option("--powerinfer-dir", type=OUT_FOLDER, help="Also write PowerInfer's activation_{i}.pt there.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@common
def profile(as_json: bool, data: tuple[str, ...], **options: Any) -> None:
    """Count how often each neuron of each layer and expert fires.

    Several --data are several corpora: the profile tells their densities apart and how far their hot neurons overlap.
    """
    from .predictors.profile.config import ProfileConfig
    from .predictors.profile.profile import profile as run_profile
    from .text.sources import parse_source

    sources = tuple(parse_source(argument) for argument in data)
    emit(run_profile(ProfileConfig(data=sources, **options)), as_json)


@main.command()
@click.argument("model")
@click.option("--out", type=OUT_FOLDER, help="Folder of the predictors; must not exist. Not needed with --estimate.")
@click.option("--data", multiple=True, help="Text, .jsonl, .parquet, a folder, or a data set; =WEIGHT. Repeatable.")
@click.option("--tokens", type=COUNT, default="64K", show_default=True, help="Tokens; an eighth of them calibrates.")
@click.option("--context", type=COUNT, default=512, show_default=True, help="Tokens a sequence.")
@click.option("--rank", type=Rank(), default="auto", show_default=True, help="Width; auto: what reads fewest bytes.")
@click.option(
    "--target-energy", type=float, default=0.98, show_default=True, help="Share of the activation energy to be kept."
)
@click.option("--max-loss", type=float, help="Perplexity that prediction may cost, such as 0.02; else: the energy.")
@click.option("--from", "start", type=OUT_FOLDER, help="Go on from these predictors, at a fifth of the learning rate.")
@click.option("--max-density", type=float, help="Share of the neurons that may be predicted, such as 0.2.")
@click.option("--budget", type=float, help="Share of the model's parameters that predictors may have, such as 0.06.")
@click.option(
    "--everywhere/--where-it-pays",
    default=None,
    help="A predictor for every FFN (default for a fixed rank), or only where it saves bytes (default for auto).",
)
@click.option("--estimate", is_flag=True, help="Only say, from few tokens and layers, what to expect at which rank.")
@click.option("--steps", type=COUNT, default=400, show_default=True, help="Training steps a predictor.")
@click.option("--batch-tokens", type=COUNT, default=512, show_default=True, help="Tokens a step.")
@click.option("--learning-rate", type=float, default=3e-2, show_default=True)
@precision
@stored_as
@click.option("--device", default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run into the same --out.")
@click.option("--dry-run", is_flag=True, help="Say what it would take (memory, disk, time), and stop.")
@common
def predictors(as_json: bool, estimate: bool, data: tuple[str, ...], **options: Any) -> None:
    """Train small networks that foresee which neurons fire, one per FFN or expert."""
    if options["out"] is None and not estimate:
        raise click.UsageError("--out is missing; only --estimate goes without")
    from .predictors.config import PredictorConfig, Training
    from .predictors.estimate import estimate_predictors
    from .predictors.train import train_predictors
    from .text.sources import parse_source

    training = Training(
        **{name: options.pop(name) for name in ("steps", "batch_tokens", "learning_rate", "autocast", "stored_as")}
    )
    sources = tuple(parse_source(argument) for argument in data)
    config = PredictorConfig(data=sources, training=training, **options)
    emit(estimate_predictors(config) if estimate else train_predictors(config), as_json)


@main.command()
@click.argument("model")
@click.option("--out", type=OUT_FILE, required=True, help="The importance matrix, NAME.gguf; must not exist.")
@click.option("--data", multiple=True, help="Text, .jsonl, .parquet, a folder, or a data set; =WEIGHT. Repeatable.")
@click.option("--tokens", type=COUNT, default="64K", show_default=True)
@click.option("--context", type=COUNT, default=512, show_default=True, help="Tokens a sequence.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@common
def imatrix(as_json: bool, data: tuple[str, ...], **options: Any) -> None:
    """Collect an importance matrix, in llama.cpp's GGUF form: which columns' errors cost most.

    export-gguf and quantize take it with --imatrix, and so does llama-quantize.
    """
    from .quant.imatrix.collect import ImatrixConfig
    from .quant.imatrix.collect import imatrix as run_imatrix
    from .text.sources import parse_source

    sources = tuple(parse_source(argument) for argument in data)
    emit(run_imatrix(ImatrixConfig(data=sources, **options)), as_json)


@main.command("export-gguf")
@click.argument("model")
@click.option("--out", type=OUT_FILE, required=True, help="The GGUF file; must not exist.")
@click.option(
    "--type", "type_name", default="F16", show_default=True, help="Mix of types: F16, Q8_0, Q4_K_M, IQ3_XS, ..."
)
@click.option("--pure", is_flag=True, help="One type for all matrices, whatever the mix's rules say.")
@click.option("--imatrix", type=PATH, help="Importance matrix, tsconvert's or llama-imatrix's.")
@click.option(
    "--target",
    type=click.Choice(["llama.cpp", "powerinfer", "sparse"]),
    help="The engine; default: sparse for a sparse model, llama.cpp for any other.",
)
@click.option("--predictors", type=PATH, help="Predictor folder; default: those inside MODEL, if any.")
@click.option("--predictor-type", default="F16", show_default=True, help="Of the predictors' matrices.")
@click.option(
    "--profile", type=PATH, help="How often neurons fire: hot ones are stored first. Default: by the predictors."
)
@click.option("--separate-predictors", is_flag=True, help="Put predictors into a second file, FILE.predictors.gguf.")
@click.option("--order/--no-order", default=True, show_default=True, help="Store neurons in order of firing.")
@click.option("--tensor-type", multiple=True, metavar="PATTERN=TYPE", help="Type of the tensors that fit. Repeatable.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Add or replace a key. Repeatable.")
@click.option("--pre", help="The pre-tokenizer's name, for a byte-level BPE that is not recognized.")
@click.option("--name", help="The model's name in the file; default: the folder's.")
@click.option("--split-max-size", "split_max_bytes", type=COUNT, help="Write shards of at most this size, such as 5G.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Default: the cores that the process may use.")
@click.option("--vram", "vram_bytes", type=COUNT, help="Also choose the neurons for a GPU of this size; PowerInfer.")
@click.option("--verify/--no-verify", "check", default=True, show_default=True, help="Compare the file with MODEL.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be written, and stop.")
@common
def export_gguf(
    as_json: bool, check: bool, tensor_type: tuple[str, ...], metadata: tuple[str, ...], **options: Any
) -> None:
    """Write MODEL as a GGUF file that PowerInfer, llama.cpp or tsconvert's runner runs.

    PATTERN is a regular expression or a shell pattern over names such as blk.0.ffn_down_t.weight. VALUE is a string, or
    of another type as u32:5, f32:0.5 or bool:true.
    """
    from .evaluate.export import export_gguf as run_export
    from .quant.export import ExportConfig, parse_pair

    config = ExportConfig(
        tensor_types=tuple(parse_pair("--tensor-type", pair, last=True) for pair in tensor_type),
        metadata=tuple(parse_pair("--metadata", pair) for pair in metadata),
        **options,
    )
    exported = run_export(config, check=check)
    emit(exported, as_json)
    exported.require()


@main.command()
@click.argument("source", metavar="IN.gguf", type=PATH)
@click.option("--out", type=OUT_FILE, required=True, help="The GGUF file; must not exist.")
@click.option("--type", "type_name", required=True, help="Mix of types: F16, Q8_0, Q4_K_M, IQ3_XS, ...")
@click.option("--pure", is_flag=True, help="One type for all matrices, whatever the mix's rules say.")
@click.option("--imatrix", type=PATH, help="Importance matrix, tsconvert's or llama-imatrix's.")
@click.option("--tensor-type", multiple=True, metavar="PATTERN=TYPE", help="Type of the tensors that fit. Repeatable.")
@click.option("--allow-requantize", is_flag=True, help="Take tensors that are quantized already; errors add up.")
@click.option("--split-max-size", "split_max_bytes", type=COUNT, help="Write shards of at most this size, such as 5G.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Default: the cores that the process may use.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and stop.")
@common
def quantize(as_json: bool, tensor_type: tuple[str, ...], **options: Any) -> None:
    """Write a GGUF file in other types, as llama-quantize would, in one pass.

    Of a model in shards IN.gguf is the first. PATTERN is a regular expression or a shell pattern over names such as
    blk.0.ffn_down.weight.
    """
    from .quant.export import parse_pair
    from .quant.quantize import QuantizeConfig
    from .quant.quantize import quantize as run_quantize

    pairs = tuple(parse_pair("--tensor-type", pair, last=True) for pair in tensor_type)
    emit(run_quantize(QuantizeConfig(tensor_types=pairs, **options)), as_json)


@main.command()
@click.argument("file", type=PATH)
@click.option("-p", "--prompt", help="The text to go on with; - reads it from stdin; none with --chat: converse.")
@click.option("-n", "--tokens", type=COUNT, default=128, show_default=True, help="Tokens to generate at most.")
@click.option(
    "--sparsity",
    type=click.Choice(["auto", "predicted", "exact", "dense"]),
    default="auto",
    show_default=True,
    help="Which neurons are computed; auto: the sparsest that the file allows.",
)
@click.option("-t", "--threads", type=int, help="Default: the cores that the process may use.")
@click.option("-c", "--context", type=COUNT, help="Tokens of context; default: the model's, 4096 at most.")
@click.option("--temp", type=float, default=0.8, show_default=True, help="Temperature; 0 takes the likeliest token.")
@click.option("--top-k", type=int, default=40, show_default=True, help="Of the likeliest K tokens only; 0: of all.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="Of the likeliest with this probability.")
@click.option("--min-p", type=float, default=0.05, show_default=True, help="At least this likely, to the likeliest.")
@click.option("--repeat-penalty", type=float, default=1.0, show_default=True, help="Of recent tokens; 1: none.")
@click.option(
    "--repeat-last-n", "repeat_last", type=int, default=64, show_default=True, help="How many tokens are recent."
)
@click.option("--seed", type=int, help="Draw the same tokens every time.")
@click.option("--chat", is_flag=True, help="In the model's chat template: -p, or a line of stdin a turn.")
@click.option("--system", help="The system's message of a --chat.")
@click.option("--stop", multiple=True, help="End the text before this string. Repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end token.")
@click.option("--stats", is_flag=True, help="Speed, bytes read and density of each layer on stderr.")
@click.option("--audit", is_flag=True, help="Count the neurons that the predictors missed; slow.")
@common
def run(file: Path, as_json: bool, **options: Any) -> None:
    """Generate text from a GGUF FILE: tsconvert's own, PowerInfer's, or llama.cpp's Llama and Mixtral.

    The text goes to stdout as it comes; all else to stderr.
    """
    from .runner.console import RunConfig
    from .runner.console import run as run_file

    config = RunConfig(file=file, stream=None if as_json else sys.stdout, **options)
    found = run_file(config)
    if as_json:
        emit(found, as_json)
    if found.finish == "interrupted":
        raise click.Abort


@main.command()
@click.argument("file", type=PATH)
@click.option("-p", "--prompt", type=COUNT, default=128, show_default=True, help="Tokens of the prompt test.")
@click.option("-n", "--tokens", "generate", type=COUNT, default=64, show_default=True, help="Tokens generated.")
@click.option("-r", "--repetitions", type=int, default=5, show_default=True)
@click.option("-t", "--threads", type=int, help="Default: the cores that the process may use.")
@click.option(
    "--sparsity",
    "modes",
    type=click.Choice(["auto", "predicted", "exact", "dense", "all"]),
    multiple=True,
    default=("all",),
    show_default=True,
    help="Repeatable; all: every mode that the file allows.",
)
@common
def bench(file: Path, as_json: bool, **options: Any) -> None:
    """Measure how fast a GGUF FILE runs: prompt and generation, tokens per second."""
    from .runner.bench import BenchConfig
    from .runner.bench import bench as run_bench

    emit(run_bench(BenchConfig(file=file, **options)), as_json)


@main.command(name="eval")
@click.argument("model", metavar="MODEL_OR_GGUF")
@click.option("--data", multiple=True, help="One corpus each: text, .jsonl, .parquet, a folder, a data set; =WEIGHT.")
@click.option("--ctx", "context", type=COUNT, default=512, show_default=True, help="Tokens a window.")
@click.option(
    "--tokens", type=COUNT, default="16K", show_default=True, help="At most, of windows spread over the text."
)
@click.option("--chunks", type=COUNT, help="Instead: the text's first N windows, as llama-perplexity --chunks.")
@click.option(
    "--method",
    type=click.Choice(["llama.cpp", "papers"]),
    default="llama.cpp",
    show_default=True,
    help="llama.cpp: the second half of each window counts; papers: every token does.",
)
@click.option("--stride", type=COUNT, help="Tokens from one window's start to the next one's; default: --ctx.")
@click.option(
    "--sparsity", "mode", type=click.Choice(["auto", "dense", "exact", "predicted"]), default="auto", show_default=True
)
@click.option("--against", help="Model to compare with, or what --save-logits wrote of one: KL divergence and more.")
@click.option("--save-logits", type=OUT_FILE, help="Keep the predictions here, NAME.safetensors, for --against.")
@click.option("--top", type=COUNT, default=2048, show_default=True, help="Tokens kept of each prediction.")
@click.option("--tasks", multiple=True, help="Instead of text: lm-eval's tasks, or agreement, which is shipped.")
@click.option("--task-folder", "folder", type=PATH, help="Task files of your own.")
@click.option("--limit", type=COUNT, help="Questions of each task; default: all.")
@click.option("--threads", "-t", type=click.IntRange(1), help="Default: one a core.")
@common
def evaluate(
    as_json: bool, data: tuple[str, ...], tasks: tuple[str, ...], folder: Path | None, limit: int | None, **options: Any
) -> None:
    """Measure perplexity, density and divergence of a checkpoint or a GGUF file, or put tasks to it.

    By default perplexity is exactly what llama-perplexity -c CTX computes.
    """
    if tasks:
        from .evaluate.tasks.lm_eval_tasks import TaskConfig, names, run_tasks

        asked = {name: options[name] for name in ("model", "mode", "threads")}
        emit(run_tasks(TaskConfig(tasks=names(tasks), folder=folder, limit=limit, **asked)), as_json)
        return
    from .evaluate.perplexity.perplexity import EvalConfig
    from .evaluate.perplexity.perplexity import evaluate as run_evaluate
    from .text.sources import parse_source

    emit(run_evaluate(EvalConfig(data=tuple(parse_source(argument) for argument in data), **options)), as_json)


@main.command()
@click.argument("model")
@click.argument("file", type=PATH)
@click.option("--predictors", type=PATH, help="Predictor folder; default: those inside MODEL, if any.")
@click.option("--logits/--no-logits", default=True, show_default=True, help="Also run prompts and compare logits.")
@common
def verify(as_json: bool, **options: Any) -> None:
    """Compare a GGUF FILE with the MODEL that it was made from; exit code 1 if it is not the same.

    Every tensor within what its type allows, the metadata, the tokenizer on nasty texts, and the runner's logits.
    """
    from .evaluate.verify.verify import VerifyConfig
    from .evaluate.verify.verify import verify as run_verify

    report = run_verify(VerifyConfig(**options))
    emit(report, as_json)
    report.require()


@main.command()
@click.argument("spec", type=PATH)
@click.option("--out", type=OUT_FOLDER, help="Folder in which the stages run; default: the spec's.")
@click.option("--set", "variables", multiple=True, metavar="NAME=VALUE", help="Of the spec's [variables]. Repeatable.")
@click.option("--resume", is_flag=True, help="Take over the stages that an earlier check finished.")
@click.option("--junit", type=OUT_FILE, help="Also write the lines as JUnit's XML.")
@click.option("--baseline", type=OUT_FILE, help="Figures of an earlier run; default: the spec's.")
@click.option("--update-baseline", is_flag=True, help="Write this run's figures there, if all else passes.")
@common
def check(as_json: bool, variables: tuple[str, ...], **options: Any) -> None:
    """Run a conversion with thresholds, for CI; exit code 1 with the lines that failed.

    SPEC is a TOML file (docs/check.md): the commands to run, finished outputs to look at, and what may come out.
    """
    from .evaluate.check.check import CheckConfig
    from .evaluate.check.check import check as run_check
    from .quant.export import parse_pair

    known = {
        name: [option for param in command.params for option in (*param.opts, *param.secondary_opts)]
        for name, command in main.commands.items()
    }
    pairs = dict(parse_pair("--set", pair) for pair in variables)
    report = run_check(CheckConfig(variables=pairs, options=known, **options))
    emit(report, as_json)
    report.require()


@main.command()
@click.argument("path")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@common
def inspect(path: str, tensors: bool, as_json: bool) -> None:
    """Say what a checkpoint, predictor folder, profile or GGUF file holds."""
    from .evaluate.inspect.inspect import inspect as run_inspect

    emit(run_inspect(path, tensors=tensors), as_json)


@main.command()
@click.argument("folder", type=PATH)
@click.option("--out", type=OUT_FILE, default="report.html", show_default=True, help="The page; replaces an older one.")
@common
def report(folder: Path, out: Path, as_json: bool) -> None:
    """Write one HTML page about a FOLDER of outputs: what was made of what, figures and plots.

    It reads checkpoints, predictors, profiles, importance matrices and GGUF files, and what eval, bench and check
    printed with --json, saved as .json files there.
    """
    from .evaluate.report.report import ReportConfig
    from .evaluate.report.report import report as run_report

    emit(run_report(ReportConfig(folder=folder, out=out)), as_json)


@main.command()
@click.argument("model", metavar="MODEL_OR_CONFIG")
@click.option(
    "--type", "types", multiple=True, default=("F16", "Q8_0", "Q4_K_M", "Q4_0"), show_default=True, help="Repeatable."
)
@click.option("--density", type=float, default=0.12, show_default=True, help="Share of neurons that fire once sparse.")
@click.option("--predicted", type=float, help="Share that predictors name; default: 1.2 times the density.")
@click.option("--rank", type=Rank(), default="auto", help="Of the predictors; auto: 4 % of the model's weights in all.")
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Sequences generated at once.")
@click.option("--ctx", "context", type=COUNT, default=512, show_default=True, help="Tokens in each one's cache.")
@click.option("--tokens", type=COUNT, default="64K", show_default=True, help="Calibration tokens of each stage.")
@click.option("--bandwidth", type=float, help="Of the machine's memory, GB/s.")
@click.option("--cores", type=click.IntRange(1), help="Default: this machine's.")
@click.option("--memory", "memory_bytes", type=COUNT, help="Such as 32G; default: this machine's.")
@click.option("--gflops", type=float, help="Of float32 products on all cores; default: 80 a core.")
@click.option("--disk", "disk_free_bytes", type=COUNT, help="Free disk, such as 200G.")
@click.option("--disk-speed", type=float, help="GB/s; default: 1.")
@click.option("--measure", is_flag=True, help="Measure here what is not given. The default if nothing is given.")
@common
def plan(
    as_json: bool, bandwidth: float | None, cores: int | None, memory_bytes: int | None, gflops: float | None,
    disk_free_bytes: int | None, disk_speed: float | None, measure: bool, **options: Any,
) -> None:  # fmt: skip
    """Say what each stage would cost and what speed to expect, from a config.json alone.

    MODEL_OR_CONFIG is a config.json, a folder, an embedded model or a hub id, whose config.json alone is fetched.
    """
    from .evaluate.plan.machine import described
    from .evaluate.plan.plan import PlanConfig
    from .evaluate.plan.plan import plan as run_plan

    machine = described(
        bandwidth_gb=bandwidth, cores=cores, memory_bytes=memory_bytes, gflops=gflops, disk_gb=disk_speed,
        disk_free_bytes=disk_free_bytes, measure=measure,
    )  # fmt: skip
    emit(run_plan(PlanConfig(machine=machine, **options)), as_json)


@main.command()
@click.option(
    "--model", default="tiny-mistral", show_default=True, help="Embedded model, checkpoint folder, or `smollm2`."
)
@click.option("--out", type=OUT_FOLDER, default="demo-out", show_default=True, help="Folder; must not exist.")
@common
def demo(as_json: bool, **options: Any) -> None:
    """Run the whole chain: convert, recover, predict, export, generate."""
    from .evaluate.demo import DemoConfig
    from .evaluate.demo import demo as run_demo

    emit(run_demo(DemoConfig(**options)), as_json)
