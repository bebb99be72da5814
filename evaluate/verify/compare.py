"""`tsconvert verify`: a GGUF file against the checkpoint that it was made from.

Every tensor is read back, moved into the source's layout and compared: exactly for float types, within the type's bound
for others (type_bounds.py); then the metadata, the tokenizer on nasty texts, and the runner's logits.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...common.errors import CheckFailedError, TsconvertError
from ...common.progress import progress
from ...model.checkpoint import Checkpoint, open_checkpoint
from ...model.files.gguf.file import GgufFile
from ...quant.targets import separate_predictors
from ...quant.targets.neuron_order import read_orders
from ...quant.targets.predictor_source import PredictorSource, find_predictors
from ...text.tokenizer import load_tokenizer
from .config import VerifyConfig
from .expected_tensors import Orders, expected_tensors, factors_of, turned_roles
from .logits import LogitsResult, compare_logits
from .metadata import ACTIVATIONS, compare_keys, compare_tokens, dialect_of
from .tensors import TensorResult, compare_predictors, compare_tensor
from .tokenizer import LEADING, NASTY, compare_texts

_IMPORTANCE = "quantize.imatrix"
_OWN_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One thing that is not as its source."""

    what: str
    """A tensor's name, a key, or `file`."""
    problem: str

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}"


@dataclass(kw_only=True)
class VerifyReport:
    """What was compared, and what failed."""

    file: str
    model: str
    dialect: str = ""
    types: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Type -> tensors of it, and the largest error as a share of what the type allows; 0: bit for bit."""
    errors: dict[str, float] = field(default_factory=dict)
    """Tensor -> what storing it cost: |stored - source| / |source|; of those whose values changed."""
    keys: int = 0
    texts: int = 0
    logits: LogitsResult | None = None
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Nothing failed."""
        return not self.failures

    def require(self) -> None:
        """Raise unless everything passed.

        Raises:
            CheckFailedError: names what failed; nothing is deleted.
        """
        if self.failures:
            more = f" and {len(self.failures) - 1} more" if len(self.failures) > 1 else ""
            raise CheckFailedError(
                f"{self.file} is not what {self.model} makes it: {self.failures[0]}{more}; export it again"
            )

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        lines = [f"{self.file}: {'is' if self.passed else 'IS NOT'} what {self.model} makes it ({self.dialect})"]
        for type_name, (count, worst) in self.types.items():
            how = "bit for bit" if worst == 0 else f"at most {worst:.0%} of what the type may be off"
            lines.append(f"  {count:>5} tensors of {type_name:<6} {how}")
        lines.append(f"  {self.keys} keys, {self.texts} texts to tokens and back")
        if self.logits is not None:
            found = self.logits
            lines.append(
                f"  logits {found.skipped}"
                if found.skipped
                else f"  logits of {found.tokens} tokens: off by {found.difference:.1e} of their spread, the same first"
                f" choice for {found.agreement:.0%}"
            )
            how = "transformers' own reading" if found.whole else "transformers' modules, layer by layer"
            trials = ", ".join(f"{trial} {off:.1e}" for trial, off in found.arithmetic.items())
            lines += [f"  arithmetic against {how}: {trials}"] if trials else []
        lines += [f"  FAILED {failure}" for failure in self.failures]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def verify(config: VerifyConfig) -> VerifyReport:
    """Compare a GGUF file with the checkpoint that it was made from.

    Returns:
        What was found; ``passed`` says whether all of it is right.

    Raises:
        TsconvertError: the checkpoint, or what was named beside it, cannot be read, or there is no such file. A file
            that is there and damaged is a failure in the report.

    Example:
        >>> verify(VerifyConfig(model="tiny-mistral", file=Path("tiny.gguf"))).require()
    """
    start_s = time.monotonic()
    checkpoint = open_checkpoint(config.model)
    report = VerifyReport(file=str(config.file), model=str(config.model))
    if not config.file.is_file():
        raise TsconvertError(f"{config.file}: no such file; give a GGUF file")
    try:
        file = GgufFile(config.file)
        orders, factors = read_orders(file, checkpoint.spec), factors_of(file)
    except TsconvertError as error:
        report.failures.append(Failure(what="file", problem=str(error)))
        return report
    report.dialect = dialect_of(file)
    if checkpoint.spec.activation not in ACTIVATIONS[report.dialect]:
        problem = f"an engine computes another FFN for {report.dialect} files than {checkpoint.spec.activation}"
        report.failures.append(Failure(what="general.architecture", problem=problem))
        return report
    if report.dialect == "llama.cpp" and config.predictors is not None:
        raise TsconvertError(f"--predictors: {config.file} is a file for llama.cpp, which has none; leave it out")
    with_relu = report.dialect == "powerinfer"
    predictors = (
        find_predictors(checkpoint, config.predictors, with_relu=with_relu) if report.dialect != "llama.cpp" else None
    )
    _tensors(report, config, file, checkpoint, orders, factors, predictors)
    _keys_and_texts(report, config, file, checkpoint, predictors)
    report.elapsed_s = round(time.monotonic() - start_s, 3)
    return report


def _tensors(
    report: VerifyReport, config: VerifyConfig, file: GgufFile, checkpoint: Checkpoint, orders: Orders,
    factors: Mapping[str, float], predictors: PredictorSource | None,
) -> None:  # fmt: skip
    known = {*_OWN_TENSORS, *(f"blk.{layer}.ffn_order" for layer in range(checkpoint.spec.layers))}
    beside = separate_predictors.find_separate(file) or file
    importances = config.importances or any(key.startswith(_IMPORTANCE) for key in file.metadata)

    def results() -> Iterator[TensorResult]:
        for expected in expected_tensors(checkpoint.spec, report.dialect, factors, turned_roles(file, report.dialect)):
            yield compare_tensor(file, expected, checkpoint, orders, importances=importances)
        if predictors is not None:
            yield from compare_predictors(beside, predictors, orders, normed=report.dialect == "sparse")

    with progress("verify", len(file.tensors)) as step:
        for result in results():
            known.add(result.name)
            if result.problem:
                report.failures.append(Failure(what=result.name, problem=result.problem))
            if result.type_name:
                count, worst = report.types.get(result.type_name, (0, 0.0))
                report.types[result.type_name] = (count + 1, max(worst, result.worst))
            if result.error:
                report.errors[result.name] = result.error
            step(result.name)
    names = dict.fromkeys([*file.tensors, *beside.tensors])
    rest = [name for name in names if name not in known]
    bare = [name for name in rest if separate_predictors.is_predictor(name)]
    if bare and predictors is None:
        report.notes.append(f"{len(bare)} predictor tensors were not compared: give the folder with --predictors")
    for name in sorted(set(rest) - set(bare if predictors is None else ())):
        report.failures.append(Failure(what=name, problem="is no tensor of this model"))


def _keys_and_texts(
    report: VerifyReport, config: VerifyConfig, file: GgufFile, checkpoint: Checkpoint,
    predictors: PredictorSource | None,
) -> None:  # fmt: skip
    hf = load_tokenizer(checkpoint.folder)
    for compared in (
        compare_keys(file, checkpoint, predictors, config.overridden),
        compare_tokens(file, hf, config.overridden),
    ):
        for key, problem in compared:
            report.keys += 1
            if problem:
                report.failures.append(Failure(what=key, problem=problem))
    try:
        problems, notes = compare_texts(file, checkpoint.folder, hf, config.overridden)
    except TsconvertError as error:
        report.failures.append(Failure(what="tokenizer", problem=str(error)))
    else:
        report.texts = len(NASTY) + len(LEADING)
        report.notes += notes
        report.failures += [Failure(what=what, problem=problem) for what, problem in problems]
    if config.logits and report.passed:
        orders = read_orders(file, checkpoint.spec)
        report.logits = compare_logits(file, checkpoint, orders, report.dialect, hf)
        if report.logits.problem:
            report.failures.append(Failure(what="logits", problem=report.logits.problem))
