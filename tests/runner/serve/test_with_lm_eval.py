"""lm-eval's own client, local-completions, gets from the server what lm-eval gets from the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tsconvert.evaluate.scoring.gguf_scorer import GgufScorer
from tsconvert.quant.export import ExportConfig, export_unverified

pytest.importorskip("lm_eval", reason="pip install 'tsconvert[tasks]'")
pytest.importorskip("tenacity", reason="pip install 'lm-eval[api]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval's imports warn


def test_log_likelihoods_and_texts(dense: Path, serving: Callable, tmp_path: Path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from tsconvert.evaluate.tasks.lm_eval_model import ScorerLM

    def asked(kind: str, *arguments: tuple) -> list[Instance]:
        return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]

    export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf", type_name="F32"))
    file = ScorerLM(GgufScorer(tmp_path / "m.gguf", "auto", 1))
    scored = asked("loglikelihood", ("The", " sea"), ("The people of", " the United States"), ("", "One"))
    long = "The people of the United States, " * 60
    texts = asked(
        "generate_until", ("The sea", {"until": ["e"], "max_gen_toks": 8, "temperature": 0}),
        (long, {"until": [], "max_gen_toks": 12, "temperature": 0}),
    )  # fmt: skip
    with serving(tmp_path / "m.gguf") as served:
        client = LocalCompletionsAPI(
            base_url=f"{served.url}/completions", model="m", tokenizer=str(dense), max_length=257, add_bos_token=True
        )
        for got, wanted in zip(client.loglikelihood(scored), file.loglikelihood(scored), strict=True):
            assert got == (pytest.approx(wanted[0], abs=1e-4), wanted[1])
        said = [text.strip() for text in client.generate_until(texts)]
    assert said == [text.strip() for text in file.generate_until(texts)]
