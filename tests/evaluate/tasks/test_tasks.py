"""lm-eval runs in a process of its own: its imports warn, and our tests take warnings for errors."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tsconvert.evaluate.tasks.lm_eval_tasks import _figures, names, shipped_tasks

installed = pytest.mark.skipif(find_spec("lm_eval") is None, reason="pip install 'tsconvert[tasks]'")
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


def run(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "tsconvert", "eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)


@installed
@pytest.mark.parametrize("kind", ["checkpoint", pytest.param("gguf", marks=pytest.mark.slow)])
def test_the_shipped_task_offline(kind: str, tmp_path: Path):
    model = "tiny-mistral"
    if kind == "gguf":
        from tsconvert.quant.export import ExportConfig, export_unverified

        model = str(tmp_path / "m.gguf")
        export_unverified(ExportConfig(model="tiny-mistral", out=Path(model), type_name="F32"))
    done = run(tmp_path, model, "--tasks", "agreement", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["questions"] == {"agreement": 48}
    assert 0.6 < found["tasks"]["agreement"]["acc"] <= 1  # chance is 0.5


@installed
@pytest.mark.slow  # lm-eval reads all of its own tasks' files
def test_tasks_of_one_s_own_and_what_they_may_ask_of_a_checkpoint(tmp_path: Path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"q": "The people of the United", "a": "States"}) + "\n")
    (tmp_path / "sayings.yaml").write_text(TEXT_TASK.replace("DATA", str(tmp_path / "data.jsonl")))
    done = run(tmp_path, "tiny-mistral", "--tasks", "sayings", "--task-folder", tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("error: tasks that generate text need a GGUF file; export the model first\n")


def test_names_and_figures():
    assert shipped_tasks() == ["agreement"]
    assert names(("a,b", "c")) == ("a", "b", "c")
    row = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "exact_match,strict": 1.0}
    assert _figures(row) == {"acc": 0.5, "exact_match_strict": 1.0}
