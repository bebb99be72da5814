"""The commands that join what stands below: `export-gguf` (write and verify) and `eval` (text or tasks)."""

from pathlib import Path

import click

from ..common.commands import Asked, command, heading
from ..common.options import (
    COUNT,
    OUT_FILE,
    THREADS,
    Pair,
    Rule,
    argument,
    not_with,
    only_with,
    option,
    setting,
)
from ..quant.config import TARGETS, ExportConfig
from ..quant.options import size_options, type_options
from ..text.options import CORPORA, text_options
from .config import MeasureConfig
from .perplexity.config import EvalConfig
from .scoring.windowing import METHODS
from .tasks.config import TaskConfig

_THREADS = "Threads to use; default: the cores that the process may use."
_SPARSE = not_with("--target", "llama.cpp")
_NOT_POWERINFER = not_with("--target", "powerinfer")
_COUNTED = Rule(
    lambda given: given["order"] or given["vram"] is not None, "without --no-order or with --vram only",
    "leave --no-order out",
)  # fmt: skip
_ON_TEXT = Rule(
    lambda given: bool(given["data"]) or not given["tasks"], "to text only, and --tasks without --data reads none",
    "give --data",
)  # fmt: skip
_ON_TASKS = only_with("--tasks")
_OWN_WINDOWS = Rule(
    lambda given: Path(given["against"] or "").suffix != ".safetensors",
    "without stored logits as --against only, which say themselves on which tokens to compare",
)
_GGUF = Rule(
    lambda given: any(map(_is_gguf, (given["model"], given["against"], *(given["baseline"] or ())))),
    "to a GGUF file only, where PyTorch does not choose them",
)


def _is_gguf(model: str | None) -> bool:
    return model is not None and (Path(model).suffix == ".gguf" or Path(model).is_file())


# --no-order is not refused where firing is not known: the neurons then stay as they are, which is what it asks for.
@command(
    "export-gguf",
    argument(ExportConfig, "model", "The checkpoint, dense or sparse: a folder, a GGUF file, a hub id, or an"
             " embedded model.", "MODEL"),
    heading(
        "Output",
        setting(ExportConfig, "out", "The GGUF file; must not exist.", kind=OUT_FILE),
        setting(ExportConfig, "target", "Engine that the file is for; default: sparse for a sparse model, else"
                " llama.cpp.", kind=click.Choice(TARGETS)),
        setting(ExportConfig, "split_max_bytes", "Write shards of at most this size, such as 5G.", "--split-max-size",
                kind=COUNT, rules=[_NOT_POWERINFER]),
        option("Compare the file with MODEL once it is written.", "--verify/--no-verify", default=True,
               show_default=True),
        option("Also write FILE.Modelfile, from which `ollama create` makes a model.", "--modelfile", is_flag=True,
               rules=[not_with("--target", "powerinfer", "sparse"), not_with("--dry-run"),
                      not_with("--split-max-size")]),
        setting(ExportConfig, "dry_run", "Check everything, say what would be written, and stop."),
    ),
    heading("Types", *type_options(ExportConfig, alike=[_NOT_POWERINFER])),
    heading("Types by size", *size_options(ExportConfig, rules=[_NOT_POWERINFER])),
    heading(
        "Predictors and neurons",
        setting(ExportConfig, "predictors", "Folder of the predictors; default: those inside MODEL, if any.",
                rules=[_SPARSE]),
        setting(ExportConfig, "predictor_type", "Type of the predictors' matrices; default: what they were"
                " trained for, F16 for PowerInfer.", rules=[_SPARSE]),
        setting(ExportConfig, "separate_predictors", "Write the predictors into a second file, FILE.predictors.gguf.",
                rules=[not_with("--target", "llama.cpp", "powerinfer")]),
        setting(ExportConfig, "attention_share", "Store attention's output matrix by its inputs; predicted mode reads"
                " this share of it, for the largest inputs of each token, such as 0.5.",
                rules=[not_with("--target", "llama.cpp", "powerinfer")]),
        setting(ExportConfig, "profile", "Profile that says how often neurons fire; default: what the predictors'"
                " training counted.", rules=[_SPARSE, _COUNTED]),
        setting(ExportConfig, "order", "Store the neurons that fire most first.", "--order/--no-order",
                rules=[_SPARSE]),
        setting(ExportConfig, "vram_bytes", "Also choose the neurons for a GPU with this much memory, such as 8G.",
                "--vram", kind=COUNT, rules=[only_with("--target", "powerinfer")]),
    ),
    heading(
        "Metadata",
        setting(ExportConfig, "name", "The model's name in the file; default: the folder's."),
        setting(ExportConfig, "metadata", "Add or replace a key. Repeatable.", kind=Pair(), metavar="KEY=VALUE"),
        setting(ExportConfig, "pre", "Name of the pre-tokenizer, for a byte-level BPE that is not recognized."),
    ),
    heading("Machine", setting(ExportConfig, "threads", _THREADS, "-t", "--threads", kind=THREADS)),
)  # fmt: skip
def export_gguf(asked: Asked) -> None:
    """Write a model as a GGUF file for PowerInfer, llama.cpp or tsconvert's own runner.

    PATTERN is a regular expression or a shell pattern over names such as blk.0.ffn_down_t.weight. VALUE is a string, or
    of another type as u32:5, f32:0.5 or bool:true.
    """
    from .export import export_gguf as run_export

    exported = run_export(asked.config(ExportConfig), check=asked["verify"], for_ollama=asked["modelfile"])
    asked.emit(exported)
    exported.require()


@command(
    "eval",
    argument(EvalConfig, "model", "A checkpoint folder, a hub id, an embedded model, or a GGUF file.", "MODEL_OR_GGUF"),
    heading(
        "Text",
        *text_options(EvalConfig, data=CORPORA)[:1],
        setting(EvalConfig, "context", "Tokens in a window.", "--ctx", kind=COUNT, rules=[_ON_TEXT, _OWN_WINDOWS]),
        setting(EvalConfig, "tokens", "At most this many tokens, of windows spread over the text.", kind=COUNT,
                rules=[_ON_TEXT, _OWN_WINDOWS, not_with("--chunks")]),
        setting(EvalConfig, "chunks", "Instead of --tokens the text's first N windows, as llama-perplexity --chunks.",
                kind=COUNT, rules=[_ON_TEXT, _OWN_WINDOWS]),
        setting(EvalConfig, "method", "llama.cpp counts the second half of each window, papers every token.",
                kind=click.Choice(METHODS), rules=[_ON_TEXT, _OWN_WINDOWS]),
        setting(EvalConfig, "parse_special", "Take special tokens that the text spells, such as <s>, for those tokens;"
                " default: with papers.", "--parse-special/--no-parse-special", rules=[_ON_TEXT, _OWN_WINDOWS]),
        setting(EvalConfig, "stride", "Tokens from one window's start to the next one's; default: --ctx.", kind=COUNT,
                rules=[_ON_TEXT, _OWN_WINDOWS]),
    ),
    heading(
        "Comparison",
        setting(EvalConfig, "against", "Model to compare with, or logits of one that --save-logits wrote: KL divergence"
                " and agreement.", rules=[_ON_TEXT]),
        setting(EvalConfig, "save_logits", "Keep the predictions in this file, NAME.safetensors, for --against.",
                kind=OUT_FILE, rules=[_ON_TEXT]),
        setting(EvalConfig, "top", "Tokens kept of each prediction.", kind=COUNT, rules=[only_with("--save-logits")]),
        setting(MeasureConfig, "baselines", "Model to hold this one against: ratio of perplexities, difference in"
                " points, the worst and the mean. Repeatable.", "--baseline", metavar="[NAME=]MODEL"),
    ),
    heading(
        "Tasks",
        setting(TaskConfig, "tasks", "Questions: a .jsonl file of {context, choices, answer} lines, a folder of such"
                " files, a task of lm-eval, or agreement, which is shipped. Repeatable.", metavar="TASK",
                required=False, multiple=True),
        setting(TaskConfig, "folder", "Folder with task files of your own.", "--task-folder", rules=[_ON_TASKS]),
        setting(TaskConfig, "limit", "Questions of each task; default: all.", kind=COUNT, rules=[_ON_TASKS]),
    ),
    heading(
        "Computation",
        setting(EvalConfig, "mode", "Which neurons of a GGUF file are computed; auto is the sparsest mode that it"
                " allows.", "--sparsity", kind=click.Choice(["auto", "dense", "exact", "predicted"])),
        setting(EvalConfig, "threads", _THREADS, "-t", "--threads", kind=THREADS, rules=[_GGUF]),
    ),
)  # fmt: skip
def evaluate(asked: Asked) -> None:
    """Measure perplexity, density and divergence of a checkpoint or a GGUF file, or give it tasks.

    Several --data and --tasks are measured one by one, and beside each --baseline. By default perplexity is exactly
    what llama-perplexity -c CTX computes.
    """
    from .measure import measure
    from .tasks.tasks import names

    shared = {"model": asked["model"], "mode": asked["sparsity"], "threads": asked["threads"]}
    tasks = asked.config(TaskConfig, tasks=names(asked["tasks"]), **shared) if asked["tasks"] else None
    text = asked.config(EvalConfig) if asked["data"] or not asked["tasks"] else None
    asked.emit(measure(asked.config(MeasureConfig, text=text, tasks=tasks)))
