"""eval on several texts and tasks, beside baselines: the figures are those of transformers, lm-eval and plain NumPy."""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert import cli, embedded, evaluate
from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.config import MeasureConfig
from tsconvert.evaluate.measure import MeasureReport, measure
from tsconvert.evaluate.perplexity.config import EvalConfig
from tsconvert.evaluate.records.measures import short_names
from tsconvert.evaluate.tasks.config import TaskConfig
from tsconvert.predictors.config import Training
from tsconvert.predictors.train import PredictorConfig, train_predictors
from tsconvert.quant.config import ExportConfig
from tsconvert.quant.export import export_unverified
from tsconvert.text.sources import Source
from tsconvert.text.tokenizer import load_tokenizer

Make = Callable[..., Path]
HELDOUT = embedded.text("heldout.txt").read_text(encoding="utf-8")
QUESTIONS: list[dict[str, Any]] = [
    {"context": "The people of the United", "choices": ["States are free.", "whale"], "answer": 0},
    {"context": "The white", "choices": ["whale", "Congress", "and most dutiful captain"], "answer": 2},
    {"context": "A\nB:", "choices": ["yes", "no"], "answer": 1, "uid": "x"},
    {"context": "Answer:\n", "choices": ["été", "summer"], "answer": 0},
    {"context": "", "choices": ["The ships are here.", "The ships is here."], "answer": 0},
    {"context": "The sea and the", "choices": [" ship", " ships"], "answer": 1},
]


def questions(folder: Path, name: str = "six.jsonl", records: list[dict[str, Any]] | None = None) -> str:
    (folder / name).write_text("\n".join(map(json.dumps, records or QUESTIONS)) + "\n", encoding="utf-8")
    return str(folder / name)


def points_of_the_whole_model(
    folder: Path, *, code: bool = False, records: list[dict[str, Any]] = QUESTIONS
) -> dict[str, list[float]]:
    """The slow twin: transformers' log-likelihood of each choice, one by one."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=code)
    points: dict[str, list[float]] = {"acc": [], "acc_bytes": []}
    for question in records:
        context, sums = question["context"], []
        for choice in question["choices"]:
            joint = "" if not context or context.endswith("\n") or choice.startswith(" ") else " "
            whole = tokenizer(context + joint + choice).input_ids
            begin = len(tokenizer(context.rstrip()).input_ids) if context else 1  # tiny-mistral begins texts with BOS
            with torch.no_grad():
                log_SV = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(float(log_SV[at - 1, whole[at]]) for at in range(begin, len(whole))))
        lengths = [len(choice.encode()) for choice in question["choices"]]
        by_byte = [total / length for total, length in zip(sums, lengths, strict=True)]
        points["acc"].append(float(np.argmax(sums) == question["answer"]))
        points["acc_bytes"].append(float(np.argmax(by_byte) == question["answer"]))
    return points


def error_of_mean(values: Any) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def task_report(model: Path | str, *tasks: str, baselines: tuple[str, ...] = (), **more: Any) -> MeasureReport:
    return measure(MeasureConfig(tasks=TaskConfig(model=str(model), tasks=tasks, **more), baselines=baselines))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measure") / "sparse"
    relufy(RelufyConfig(model="tiny-mistral", out=out, recover="none", align=False))
    return out


@pytest.fixture(scope="module")
def sparse_file(sparse: Path) -> str:
    how = Training(steps=4, batch_tokens=64)
    predictors, file = sparse.with_name("predictors"), sparse.with_name("sparse.gguf")
    train_predictors(PredictorConfig(model=str(sparse), out=predictors, tokens=512, context=64, rank=4, training=how))
    export_unverified(ExportConfig(model=str(sparse), out=file, predictors=predictors, type_name="F32"))
    return str(file)


def test_the_likeliest_choice_is_that_of_the_whole_model(tmp_path: Path):
    found = task_report("tiny-mistral", questions(tmp_path)).tasks[0]
    expected = points_of_the_whole_model(embedded.folder("tiny-mistral"))
    assert (found.name, found.questions) == ("six", 6)
    assert found.scored is not None
    assert found.scored.values_P.tolist() == expected["acc_bytes"]
    assert 0 < sum(expected["acc_bytes"]) < 6
    assert expected["acc"] != expected["acc_bytes"]
    for metric, points in expected.items():
        assert found.metrics[metric] == pytest.approx(np.mean(points))
        assert found.metrics[f"{metric}_stderr"] == pytest.approx(error_of_mean(points))


def test_a_gguf_file_answers_as_its_checkpoint_in_every_mode(sparse: Path, sparse_file: str, tmp_path: Path):
    task = questions(tmp_path)
    expected = points_of_the_whole_model(sparse, code=True)["acc_bytes"]
    points = {}
    for mode in ("dense", "exact", "predicted"):
        report = task_report(sparse_file, task, mode=mode, threads=1)
        assert report.mode == mode
        assert report.tasks[0].scored is not None
        points[mode] = report.tasks[0].scored.values_P.tolist()
    assert points["dense"] == points["exact"] == expected
    assert len(points["predicted"]) == 6


def test_ratios_differences_and_their_errors(sparse: Path, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "text.txt").write_text(HELDOUT[:6000], encoding="utf-8")
    (tmp_path / "b" / "text.txt").write_text("the sea and the ship " * 300, encoding="utf-8")
    data = tuple(Source(path=str(tmp_path / name / "text.txt")) for name in "ab")
    text = EvalConfig(model=str(sparse), data=data, context=64, method="papers", tokens=512)
    tasks = TaskConfig(model=str(sparse), tasks=("agreement",))
    report = measure(MeasureConfig(text=text, tasks=tasks, baselines=("tiny-mistral", f"same={sparse}")))
    one, two, agreement = report.measures
    assert [each.name for each in report.measures] == ["a/text", "b/text", "agreement"]
    assert [each.name for each in report.baselines] == ["tiny-mistral", "same"]

    tokenizer = load_tokenizer(sparse)
    ratios = []
    for found, source in ((one, data[0]), (two, data[1])):
        ids = tokenizer(Path(source.path).read_text(encoding="utf-8")).input_ids
        starts = [64 * (at * (len(ids) // 64) // 4) for at in range(4)]
        rows = torch.tensor([ids[start : start + 64] for start in starts])
        losses = []
        for folder in (sparse, embedded.folder("tiny-mistral")):
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=folder == sparse
            )
            with torch.no_grad():
                log_NSV = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
            losses.append(-log_NSV.gather(-1, rows[:, 1:, None]).flatten().double().numpy())
        ours, theirs = losses
        ratios.append(math.exp(np.mean(ours) - np.mean(theirs)))
        beside = found.baselines[0]
        assert (found.metric, found.count) == ("perplexity", 4 * 63)
        assert found.value == pytest.approx(math.exp(np.mean(ours)), rel=1e-4)
        assert found.error == pytest.approx(found.value * error_of_mean(ours), rel=1e-3)
        assert beside.value == pytest.approx(math.exp(np.mean(theirs)), rel=1e-4)
        assert beside.ratio == pytest.approx(ratios[-1], rel=1e-4)
        assert beside.ratio_error == pytest.approx(ratios[-1] * error_of_mean(ours - theirs), rel=1e-3)
        assert (beside.difference, beside.difference_error) == (None, None)
        assert (found.baselines[1].ratio, found.baselines[1].ratio_error) == (1, 0)

    shipped = Path(evaluate.__file__).parent / "tasks" / "agreement.jsonl"
    records = list(map(json.loads, shipped.read_text(encoding="utf-8").splitlines()))
    ours = np.array(points_of_the_whole_model(sparse, code=True, records=records)["acc_bytes"])
    theirs = np.array(points_of_the_whole_model(embedded.folder("tiny-mistral"), records=records)["acc_bytes"])
    beside = agreement.baselines[0]
    assert (agreement.metric, agreement.count, agreement.value) == ("acc_bytes", 48, ours.mean())
    assert beside.value == theirs.mean()
    assert ours.tolist() != theirs.tolist()
    assert beside.difference == pytest.approx(ours.mean() - theirs.mean())
    assert beside.difference_error == pytest.approx(error_of_mean(ours - theirs))
    assert beside.ratio == pytest.approx(ours.mean() / theirs.mean())

    dense, same = report.baselines
    assert dense.worst_ratio == pytest.approx(max(ratios), rel=1e-4)
    assert dense.worst_ratio_on == ("a/text" if ratios[0] > ratios[1] else "b/text")
    assert dense.mean_ratio == pytest.approx(math.sqrt(ratios[0] * ratios[1]), rel=1e-4)
    assert (dense.worst_difference, dense.worst_difference_on) == (beside.difference, "agreement")
    assert (dense.mean_difference, dense.mean_difference_error) == (beside.difference, beside.difference_error)
    assert (same.worst_ratio, same.worst_difference) == (1, 0)
    said = str(report)
    assert all(word in said for word in ("a/text", "b/text", "worst", f"{dense.worst_ratio:.3f} times", "points"))


def test_the_ratio_s_error_is_the_delta_method_s():
    """Against the spread of the ratio over many samples of as many questions."""
    from tsconvert.evaluate.records.measures import Scored, beside

    random = np.random.default_rng(0)
    pairs = random.random((4000, 200)) < 0.6
    ours = np.where(random.random(pairs.shape) < 0.2, random.random(pairs.shape) < 0.3, pairs)
    spread = float(np.std(ours.mean(1) / pairs.mean(1)))
    scored = [Scored(source="t", metric="acc", values_P=values[0].astype(float)) for values in (ours, pairs)]
    assert beside("b", *scored).ratio_error == pytest.approx(spread, rel=0.15)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="pip install 'tsconvert[tasks]'")
@pytest.mark.filterwarnings("ignore")  # lm-eval's imports warn
def test_lm_eval_finds_the_same_and_its_own_tasks_are_paired(sparse: Path, tmp_path: Path):
    records = [each for each in QUESTIONS if not each["context"].endswith("\n") and each["choices"][0][0] != " "]
    task = questions(tmp_path, "mine.jsonl", records)
    (tmp_path / "theirs.yaml").write_text(
        "task: theirs\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {task}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{context}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\nmetric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]\n",
        encoding="utf-8",
    )
    report = task_report(sparse, task, "theirs", folder=tmp_path, baselines=("tiny-mistral",))
    mine, theirs = report.tasks
    assert (mine.questions, theirs.questions) == (4, 4)
    for metric in ("acc", "acc_bytes"):
        assert mine.metrics[metric] == theirs.metrics[metric]
        assert mine.metrics[f"{metric}_stderr"] == pytest.approx(theirs.metrics[f"{metric}_stderr"])
    one, two = report.measures
    assert (one.name, two.name, one.metric, two.metric) == ("mine", "theirs", "acc_bytes", "acc_bytes")
    assert one.baselines == two.baselines


def test_a_baseline_with_another_tokenizer_is_refused_before_anything_is_scored(make_checkpoint: Make, tmp_path: Path):
    import shutil

    other = Path(shutil.copytree(make_checkpoint("mistral"), tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = EvalConfig(model="tiny-mistral", tokens=256, context=128)
    with pytest.raises(TsconvertError) as caught:
        measure(MeasureConfig(text=text, baselines=(f"dense={other}",)))
    assert str(caught.value) == (
        "--baseline dense: its tokenizer cuts the text otherwise than the model's, and perplexities of other tokens are"
        " not to be compared; give a model with the same tokenizer"
    )
    with pytest.raises(TsconvertError) as caught:
        measure(MeasureConfig(text=text, baselines=("tiny-mistral", "x=tiny-mistral", "x=tiny-mixtral")))
    assert str(caught.value) == "--baseline x=tiny-mixtral: x is named twice; give NAME=MODEL with another name"


FORM = 'write it like {"context": "...", "choices": ["...", "..."], "answer": 0}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is no JSON"),
        ("[1]", "has no text as context"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "has no list of two or more texts as choices"),
        ('{"context": "a", "choices": ["b", ""], "answer": 0}', "has no list of two or more texts as choices"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "has 2 as answer, no index of its 2 choices"),
        ('{"context": "a", "choices": ["b", "c"], "answer": true}', "has True as answer, no index of its 2 choices"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, problem: str):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(QUESTIONS[0]) + "\n\n" + line + "\n")
    with pytest.raises(TsconvertError) as caught:
        task_report("tiny-mistral", str(file))
    assert str(caught.value) == f"--tasks {file}: line 3 {problem}; {FORM}"


def test_files_folders_and_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "sub").mkdir()
    numbers = [{"context": str(n), "choices": ["a", "b"], "answer": 0} for n in range(10)]
    questions(tmp_path / "sub", "ten.jsonl", numbers)
    questions(tmp_path)
    (tmp_path / "sums.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    report = task_report("tiny-mistral", str(tmp_path), limit=3)
    assert [(task.name, task.questions) for task in report.tasks] == [("six", 3), ("ten", 3)]
    assert f"--tasks {tmp_path}: sums.jsonl has no choices and is left out" in capsys.readouterr().err
    from tsconvert.evaluate.tasks.choices import read_questions

    assert [each.context for each in read_questions(tmp_path / "sub" / "ten.jsonl", 3)] == ["0", "3", "6"]
    with pytest.raises(TsconvertError) as caught:
        task_report("tiny-mistral", str(tmp_path / "none.jsonl"))
    assert str(caught.value) == f"--tasks {tmp_path}/none.jsonl: no such file; look at the path"


def test_short_names():
    assert short_names(["x/a/text.txt", "x/b/text.txt", "wiki.jsonl", "arc"]) == ["a/text", "b/text", "wiki", "arc"]
    assert short_names(["a.txt", "a.jsonl"]) == ["a.txt", "a.jsonl"]
    assert short_names([]) == []


def test_a_check_holds_the_worst_ratio_to_a_limit(sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    task = questions(tmp_path)
    (tmp_path / "spec.check.toml").write_text(
        "format = 1\n[stages]\n"
        f'quality = "eval {sparse} --tokens 256 --ctx 64 --data {embedded.text("heldout.txt")} --tasks {task}'
        ' --baseline dense=tiny-mistral"\n'
        "[limits.quality]\nbaselines.dense.worst_ratio.max = 1.0\nbaselines.dense.mean_difference.min = -1\n"
        "measures.six.baselines.dense.value.min = 0.1\nmeasures.heldout.count.equal = 124\n",
        encoding="utf-8",
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(tmp_path / "spec.check.toml"), "--json"], prog_name="tsconvert")
    assert ended.value.code == 1
    lines = json.loads(capsys.readouterr().out)["lines"]
    failed = [line["what"] for line in lines if line["status"] == "failed"]
    assert failed == ["quality.baselines.dense.worst_ratio"]
    assert [line["status"] for line in lines].count("passed") == 4
