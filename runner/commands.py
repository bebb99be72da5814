"""The commands `run`, `serve` and `bench`."""

import sys

import click

from ..common.commands import Asked, command, heading
from ..common.options import COUNT, ENDLESS_COUNT, PATH, RANK, Rule, argument, not_with, only_with, option, setting
from .config import MODES, BenchConfig, RunConfig, ServeConfig, ShapeConfig

_PLANTED = click.Choice(["Q4_0", "Q8_0"])
_THREADS = "Threads to use; default: the cores that the process may use."
_SHAPE, _NO_SHAPE = [only_with("--shape")], [not_with("--shape")]
_SHOWN = Rule(lambda given: given["stats"] or given["json"], "with --stats or --json only", "give --stats")


# Sampling options are not refused beside --temp 0, nor --repeat-last-n without a penalty: they then change nothing, but
# llama.cpp's users keep them in their command lines, and llama.cpp takes them.
@command(
    "run",
    argument(RunConfig, "file", "A GGUF file: tsconvert's own, PowerInfer's, or a Llama or Mixtral for llama.cpp.",
             "FILE", PATH),
    heading(
        "Prompt",
        setting(RunConfig, "prompt", "The text to continue; - reads it from stdin. --chat needs none.", "-p",
                "--prompt"),
        setting(RunConfig, "chat", "Use the model's chat template: for -p, or for each line of stdin as a turn."),
        setting(RunConfig, "system", "The system message of the conversation.", rules=[only_with("--chat")]),
    ),
    heading(
        "Generation",
        setting(RunConfig, "tokens", "Generate at most this many tokens; -1 goes on to the model's end token or a"
                " full context.", "-n", "--tokens", kind=ENDLESS_COUNT),
        setting(RunConfig, "stop", "End the text before this string. Repeatable."),
        setting(RunConfig, "ignore_eos", "Continue after the model's end token."),
    ),
    heading(
        "Sampling",
        setting(RunConfig, "temp", "Temperature; 0 takes the likeliest token."),
        setting(RunConfig, "top_k", "Draw from the K likeliest tokens only; 0 or -1 from all."),
        setting(RunConfig, "top_p", "Draw from the likeliest tokens that have this probability together; 1 from all."),
        setting(RunConfig, "min_p", "Draw from tokens that have this share of the likeliest one's probability; 0 from"
                " all."),
        setting(RunConfig, "repeat_penalty", "Make recent tokens this much less likely; 1 changes nothing."),
        setting(RunConfig, "repeat_last", "How many tokens are recent; -1 is all.", "--repeat-last-n"),
        setting(RunConfig, "seed", "Draw the same tokens every time; -1 does not."),
    ),
    heading(
        "Computation",
        setting(RunConfig, "sparsity", "Which neurons are computed; auto is the sparsest mode that the file allows.",
                kind=click.Choice(MODES)),
        setting(RunConfig, "context", "Tokens of context; default: the model's, at most 4096; 0 is all of the"
                " model's.", "-c", "--context",
                kind=COUNT),
        setting(RunConfig, "threads", _THREADS, "-t", "--threads"),
    ),
    heading(
        "Figures",
        setting(RunConfig, "stats", "Print speed, bytes read and density of each layer on stderr."),
        setting(RunConfig, "audit", "Also compute the neurons that were not predicted, to count the missed ones; slow.",
                rules=[only_with("--sparsity", "auto", "predicted"), _SHOWN]),
    ),
)  # fmt: skip
def run(asked: Asked) -> None:
    """Generate text from a GGUF file.

    The text goes to stdout as it comes; all else goes to stderr.
    """
    from .console import run as run_file

    found = run_file(asked.config(RunConfig, stream=None if asked["json"] else sys.stdout))
    if asked["json"]:
        asked.emit(found)
    if found.finish == "interrupted":
        raise click.Abort


@command(
    "serve",
    argument(ServeConfig, "file", "A GGUF file, as for run.", "FILE", PATH),
    heading(
        "Network",
        setting(ServeConfig, "host", "Address to listen at; the default is for this machine alone."),
        setting(ServeConfig, "port", "Port to listen at; 0 takes any that is free."),
        setting(ServeConfig, "api_key", "Key that clients must give; default: none is needed."),
        setting(ServeConfig, "queue", "Requests that may wait while another is answered; more are told to try later.",
                kind=COUNT),
    ),
    heading(
        "Computation",
        setting(ServeConfig, "sparsity", "Which neurons are computed; auto is the sparsest mode that the file allows.",
                kind=click.Choice(MODES)),
        setting(ServeConfig, "context", "Tokens of context; default: the model's, at most 4096; 0 is all of the"
                " model's.", "-c", "--context", kind=COUNT),
        setting(ServeConfig, "threads", _THREADS, "-t", "--threads"),
    ),
)  # fmt: skip
def serve(asked: Asked) -> None:
    """Answer requests for text over HTTP, as OpenAI's API has them.

    Chat and text completions, streamed or whole, under http://HOST:PORT/v1. Needs pip install 'tsconvert[server]'.
    With --json the address is printed as JSON once the server listens.
    """
    from .serve.server import serve as run_server

    run_server(asked.config(ServeConfig), asked.emit)


@command(
    "bench",
    argument(BenchConfig, "file", "The GGUF file to measure; none with --shape.", "[FILE]", PATH, required=False),
    heading(
        "Measurement",
        setting(BenchConfig, "prompt", "Tokens of the prompt test; 0 leaves it out.", "-p", "--prompt", kind=COUNT,
                rules=_NO_SHAPE),
        setting(BenchConfig, "generate", "Tokens of the generation test; 0 leaves it out.", "-n", "--tokens",
                kind=COUNT),
        setting(BenchConfig, "repetitions", "Repeat each test this often and take the median.", "-r", "--repetitions"),
        setting(BenchConfig, "modes", "Mode to measure; all is every mode that the file allows. Repeatable.",
                "--sparsity", kind=click.Choice([*MODES, "all"]), rules=_NO_SHAPE),
        setting(BenchConfig, "threads", _THREADS, "-t", "--threads"),
    ),
    heading(
        "A shape in place of a file",
        option("Measure what a sparse model of this shape would do here, on planted weights of a few layers: a"
               " config.json, a folder, an embedded model or a hub id, whose config.json alone is fetched.", "--shape",
               metavar="MODEL_OR_CONFIG"),
        setting(ShapeConfig, "density", "Share of the neurons that fire.", rules=_SHAPE),
        setting(ShapeConfig, "predicted", "Share of the neurons that predictors name; default: 1.2 times the density.",
                rules=_SHAPE),
        setting(ShapeConfig, "rank", "Rank of the predictors (their width), in 32s; auto takes 4 % of the model's"
                " weights for all of them.", kind=RANK, rules=_SHAPE),
        setting(ShapeConfig, "type_name", "Type of the weights.", "--type", kind=_PLANTED, rules=_SHAPE),
        setting(ShapeConfig, "predictor_type", "Type of the predictors' weights.", kind=_PLANTED, rules=_SHAPE),
    ),
)  # fmt: skip
def bench(asked: Asked) -> None:
    """Measure how fast a GGUF file runs, or would: tokens per second of prompt and generation.

    With --shape no trained model is needed: a few layers of random weights, of whose neurons the given shares fire and
    are predicted, tell the speed of the whole model in each mode.
    """
    from .bench.file_bench import bench as run_bench
    from .bench.shape_bench import bench_shape

    if (asked["file"] is None) == (asked["shape"] is None):
        raise click.UsageError("give a GGUF FILE, or --shape MODEL_OR_CONFIG")
    if asked["shape"] is None:
        asked.emit(run_bench(asked.config(BenchConfig)))
    else:
        measured = {"generate": asked["tokens"], "repetitions": asked["repetitions"], "threads": asked["threads"]}
        asked.emit(bench_shape(asked.config(ShapeConfig, model=asked["shape"], **measured)))
