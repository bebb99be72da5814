"""The command `verify`."""

from ...common.commands import Asked, command, heading
from ...common.options import PATH, argument, setting
from .config import VerifyConfig


@command(
    "verify",
    argument(VerifyConfig, "model", "The checkpoint that the file was made from.", "MODEL"),
    argument(VerifyConfig, "file", "The GGUF file; of a model in shards, the first.", "FILE", PATH),
    heading(
        "Comparison",
        setting(VerifyConfig, "predictors", "Folder of the file's predictors; default: those inside MODEL, if any."),
        setting(VerifyConfig, "logits", "Also run prompts and compare the logits.", "--logits/--no-logits"),
    ),
)
def verify(asked: Asked) -> None:
    """Compare a GGUF file with the model that it was made from; exit code 1 if it differs.

    Every tensor is compared within what its type allows, then the metadata, the tokenizer on difficult texts, and the
    runner's logits.
    """
    from .compare import verify as run_verify

    report = run_verify(asked.config(VerifyConfig))
    asked.emit(report)
    report.require()
