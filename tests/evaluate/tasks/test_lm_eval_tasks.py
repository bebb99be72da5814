import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.config import MeasureConfig
from tsconvert.evaluate.measure import MeasureReport, measure
from tsconvert.evaluate.tasks.config import TaskConfig
from tsconvert.evaluate.tasks.lm_eval_tasks import figures
from tsconvert.evaluate.tasks.tasks import names, shipped_tasks
from tsconvert.quant.config import ExportConfig
from tsconvert.quant.export import export_unverified

lm_eval = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="pip install 'tsconvert[tasks]'"),
    pytest.mark.filterwarnings("ignore"),  # lm-eval's imports warn
]
TEXT_TASK = """\
task: sayings
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: [" "], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("tasks") / "tiny.gguf"
    export_unverified(ExportConfig(model="tiny-mistral", out=out, type_name="F32"))
    return str(out)


def run(model: str, *tasks: str, folder: Path | None = None) -> MeasureReport:
    return measure(MeasureConfig(tasks=TaskConfig(model=model, tasks=tasks, folder=folder)))


def test_a_checkpoint_and_its_gguf_file_answer_the_shipped_task_alike(gguf: str):
    found = [run(model, "agreement").tasks[0] for model in ("tiny-mistral", gguf)]
    assert [(task.name, task.questions) for task in found] == [("agreement", 48)] * 2
    assert found[0].metrics["acc"] == found[1].metrics["acc"]
    assert 0.6 < found[0].metrics["acc"] <= 1  # chance is 0.5


class TestWithLmEval:
    pytestmark = lm_eval

    def test_a_task_of_one_s_own_that_generates_text(self, gguf: str, tmp_path: Path):
        (tmp_path / "data.jsonl").write_text(json.dumps({"q": "The people of the United", "a": "States"}) + "\n")
        (tmp_path / "sayings.yaml").write_text(TEXT_TASK.replace("DATA", str(tmp_path / "data.jsonl")))
        report = run(gguf, "sayings", folder=tmp_path)
        assert report.to_json()["questions"] == {"sayings": 1}
        assert report.to_json()["tasks"]["sayings"]["exact_match"] == 1.0
        assert [(each.name, each.metric, each.value) for each in report.measures] == [("sayings", "exact_match", 1.0)]
        with pytest.raises(TsconvertError) as error:
            run("tiny-mistral", "sayings", folder=tmp_path)
        assert str(error.value) == "tasks that generate text need a GGUF file; export the model first"


def test_names_and_figures():
    assert shipped_tasks() == ["agreement"]
    assert names(("a,b", "c")) == ("a", "b", "c")
    row = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "exact_match,strict": 1.0}
    assert figures(row) == {"acc": 0.5, "exact_match_strict": 1.0}
