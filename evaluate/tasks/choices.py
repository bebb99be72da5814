"""Multiple choice from a file: which of the choices does the model find likeliest after the context?

One JSON object a line: {"context": "...", "choices": ["...", ...], "answer": index}; other keys are left alone. Context
and choice are joined by a space, unless the context is empty or white space stands there already. lm-eval does the same
with `output_type: multiple_choice`; `acc` and `acc_bytes` are its metrics of these names: the choice of the highest
log-likelihood, and of the highest log-likelihood a byte.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import TsconvertError, shown
from ...common.progress import note
from ...text.records import readable
from ..records.measures import Scored, short_names
from ..scoring.continuations import Pair, log_likelihoods
from ..scoring.scorer import Scorer
from ..scoring.windows import common_beginning
from .result import TaskResult

_FORM = 'write it like {"context": "...", "choices": ["...", "..."], "answer": 0}'


@dataclass(frozen=True, kw_only=True)
class Question:
    """A context, what may follow, and which of it is right."""

    context: str
    choices: tuple[str, ...]
    answer: int


def is_choice_file(name: str) -> bool:
    """Whether a task's name is that of a file of questions, or of a folder of such files."""
    return Path(name).suffix == ".jsonl" or Path(name).is_dir()


def choice_files(name: str) -> list[Path]:
    """The file, or those in a folder that hold choices.

    Raises:
        TsconvertError: there is none.
    """
    path = Path(name)
    if not path.exists():
        raise TsconvertError(f"--tasks {name}: no such file; look at the path")
    if path.is_file():
        return [path]
    found = []
    for file in sorted(path.rglob("*.jsonl")):
        with file.open(encoding="utf-8", errors="replace") as lines:
            first = next(lines, "")
        if '"choices"' in first:
            found.append(file)
        else:
            note(f"--tasks {name}: {file.relative_to(path)} has no choices and is left out")
    if not found:
        raise TsconvertError(f"--tasks {name}: no .jsonl file with choices in this folder; {_FORM}")
    return found


def read_questions(file: Path, limit: int | None = None) -> list[Question]:
    """The file's questions, or ``limit`` of them spread evenly over it.

    Raises:
        TsconvertError: a line is no question; it is named.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TsconvertError(f"--tasks {file}: cannot be read ({error}); give UTF-8 lines of JSON") from None
    questions = [
        _question(line, f"--tasks {file}: line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not questions:
        raise TsconvertError(f"--tasks {file}: holds no question; {_FORM}")
    wanted = min(limit or len(questions), len(questions))
    return [questions[at * len(questions) // wanted] for at in range(wanted)]


def _question(line: str, where: str) -> Question:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise TsconvertError(f"{where} is no JSON; {_FORM}") from None
    found = record if isinstance(record, dict) else {}
    context, choices, answer = (found.get(key) for key in ("context", "choices", "answer"))
    if not isinstance(context, str):
        raise TsconvertError(f"{where} has no text as context; {_FORM}")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
        raise TsconvertError(f"{where} has no list of two or more texts as choices; {_FORM}")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise TsconvertError(f"{where} has {shown(answer)} as answer, no index of its {len(choices)} choices; {_FORM}")
    return Question(context=readable(context), choices=tuple(map(readable, choices)), answer=answer)


def score_files(model: Scorer, files: Mapping[str, Sequence[Question]]) -> list[TaskResult]:
    """What ``model`` makes of each file's questions: `acc` and `acc_bytes`; all go through it together."""
    pairs = [pair for questions in files.values() for question in questions for pair in _pairs(model, question)]
    likelihoods = iter(log_likelihoods(model, pairs))
    results = []
    for name, (source, questions) in zip(short_names(list(files)), files.items(), strict=True):
        points: dict[str, list[bool]] = {"acc": [], "acc_bytes": []}
        for question in questions:
            likelihood_C = np.array([next(likelihoods)[0] for _ in question.choices])
            bytes_C = np.array([len(choice.encode()) for choice in question.choices])
            points["acc"].append(bool(likelihood_C.argmax() == question.answer))
            points["acc_bytes"].append(bool((likelihood_C / bytes_C).argmax() == question.answer))
        scores = [
            Scored(source=source, metric=metric, values_P=np.asarray(values, np.float64))
            for metric, values in points.items()
        ]
        metrics = {score.metric: score.value for score in scores}
        metrics |= {f"{score.metric}_stderr": score.error for score in scores}
        results.append(TaskResult(name=name, metrics=metrics, questions=len(questions), scored=scores[-1]))
    return results


def _pairs(model: Scorer, question: Question) -> Iterator[Pair]:
    """Tokens of the context and of each choice after it.

    They part where the tokens of the context alone, and of it with each choice, part for the first time, so that all
    choices are judged after the same tokens; the context's last white space belongs to the choices (as in lm-eval).
    """
    context = question.context.rstrip()
    space = question.context[len(context) :]
    if not context:
        for choice in question.choices:
            tokens = model.encode(space + choice)
            bare = tokens[1:] if model.bos is not None and tokens[:1] == [model.bos] else tokens
            yield [model.start], bare
        return
    head = model.encode(context)
    wholes = [
        model.encode(context + (space or " " * (not choice[0].isspace())) + choice) for choice in question.choices
    ]
    parting = min(common_beginning(head, whole) for whole in wholes)
    for whole in wholes:
        yield (whole[:parting], whole[parting:]) if parting else ([model.start], whole)
