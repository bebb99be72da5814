import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.config import MeasureConfig
from tsconvert.evaluate.measure import MeasureReport, measure
from tsconvert.evaluate.scoring.checkpoint_scorer import CheckpointScorer
from tsconvert.evaluate.scoring.gguf_scorer import GgufScorer
from tsconvert.evaluate.tasks.config import TaskConfig
from tsconvert.evaluate.tasks.lm_eval_tasks import figures
from tsconvert.evaluate.tasks.tasks import names, shipped_tasks
from tsconvert.quant.config import ExportConfig
from tsconvert.quant.export import export_unverified
from tsconvert.text.tokenizer import load_tokenizer

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

    def test_what_is_too_long_is_shortened_as_lm_eval_s_own_model_shortens_it(
        self, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        """Answers and log-likelihoods of HFLM, the model that lm-eval has for transformers."""
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        from tsconvert.evaluate.tasks.lm_eval_model import ScorerLM

        export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf", type_name="F32"))
        hf = HFLM(AutoModelForCausalLM.from_pretrained(dense), tokenizer=load_tokenizer(dense), device="cpu")
        ours = [ScorerLM(GgufScorer(tmp_path / "m.gguf", "auto", 1)), ScorerLM(CheckpointScorer(dense))]
        assert hf.max_length == ours[0]._scorer.context == 256
        long = "The people of the United States, " * 60

        def asked(kind: str, *arguments: tuple) -> list[Instance]:
            return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]

        texts = asked(
            "generate_until", ("The sea", {"until": ["\n"], "max_new_tokens": 8}), (long, {"max_gen_toks": 12}),
            (long, {"until": ["e"], "max_gen_toks": 250}),
        )  # fmt: skip
        capsys.readouterr()
        assert ours[0].generate_until(texts) == hf.generate_until(texts, disable_tqdm=True)
        size = len(load_tokenizer(dense)(long).input_ids)
        assert f"a prompt of {size} tokens is too long: its last 244 are used, the rest is for the answer\n" in (
            capsys.readouterr().err
        )
        scored = asked("loglikelihood", ("The", " sea"), (long, "the sea"), ("", long[:300]))
        whole = asked("loglikelihood_rolling", (long,), ("The sea",))
        for model in ours:
            for got, wanted in zip(
                model.loglikelihood(scored), hf.loglikelihood(scored, disable_tqdm=True), strict=True
            ):
                assert got == (pytest.approx(wanted[0], rel=1e-5), wanted[1])
            assert model.loglikelihood_rolling(whole) == pytest.approx(
                hf.loglikelihood_rolling(whole, disable_tqdm=True), rel=1e-5
            )
        assert (
            "1 of 3 contexts lose their beginning: with what follows they exceed 256 tokens\n"
            in capsys.readouterr().err
        )
        with pytest.raises(AssertionError, match="must be less than model's maximum sequence length"):
            hf.generate_until(asked("generate_until", ("a", {"max_gen_toks": 256})), disable_tqdm=True)
        with pytest.raises(TsconvertError) as error:
            ours[0].generate_until(asked("generate_until", ("a", {"max_gen_toks": 256})))
        assert str(error.value) == (
            "a task wants answers of 256 tokens, and the model's context has 256; set a smaller max_gen_toks in the"
            " task's file"
        )

    def test_answers_are_drawn_where_a_task_says_so(self, dense: Path, tmp_path: Path):
        from lm_eval.api.instance import Instance

        from tsconvert.evaluate.tasks.lm_eval_model import ScorerLM

        export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf", type_name="F32"))
        model = ScorerLM(GgufScorer(tmp_path / "m.gguf", "auto", 1))

        def answers(**settings: object) -> list[str]:
            request = Instance("generate_until", {}, ("The sea", {"max_gen_toks": 8, **settings}), 0)
            return model.generate_until([request] * 2)

        greedy, drawn = answers(), answers(do_sample=True, temperature=5.0)
        assert greedy[0] == greedy[1]
        assert len({*drawn, greedy[0]}) == 3
        assert drawn == answers(do_sample=True, temperature=5.0)
        assert answers(do_sample=False, temperature=5.0) == greedy


def test_names_and_figures():
    assert shipped_tasks() == ["agreement"]
    assert names(("a,b", "c")) == ("a", "b", "c")
    row = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "exact_match,strict": 1.0}
    assert figures(row) == {"acc": 0.5, "exact_match_strict": 1.0}
