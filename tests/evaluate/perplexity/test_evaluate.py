import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, evaluate
from tsconvert.evaluate.scoring.checkpoint_scorer import CheckpointScorer
from tsconvert.evaluate.scoring.gguf_scorer import GgufScorer
from tsconvert.evaluate.scoring.transformers_scorer import TransformersScorer
from tsconvert.evaluate.scoring.windows import Windowing, cut
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.text.sources import Source
from tsconvert.text.tokenizer import load_tokenizer

Make = Callable[..., Path]
HELDOUT = str(embedded.text("heldout.txt"))


def whole_model_log_probabilities(folder: Path, tokens: int, context: int, *, code: bool = False) -> tuple:
    """The slow twin: transformers' whole model on the same windows."""
    tokenizer = load_tokenizer(folder)
    how = Windowing(method="papers", context=context, tokens=tokens)
    rows = torch.from_numpy(cut(lambda t: tokenizer(t).input_ids, None, [Source(path=HELDOUT)], how).rows_NS)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=code)
    with torch.no_grad():
        return rows, model(input_ids=rows).logits[:, :-1].log_softmax(-1)


def papers(model: Path, **options) -> EvalConfig:
    return EvalConfig(model=str(model), method="papers", context=128, **options)


def test_the_papers_perplexity_is_that_of_the_whole_model(dense: Path):
    rows, log_NSV = whole_model_log_probabilities(dense, 2048, 128)
    expected = math.exp(-float(log_NSV.gather(-1, rows[:, 1:, None]).mean()))
    report = evaluate(papers(dense, tokens=2048))
    assert report.perplexity == pytest.approx(expected, rel=1e-5)
    assert (report.tokens, report.counted) == (2048, 2048 - 16)
    assert report.density == []
    assert report.mean_density is None


def test_llama_cpp_s_perplexity_is_that_of_the_second_halves(dense: Path):
    tokenizer = load_tokenizer(dense)
    ids = tokenizer(Path(HELDOUT).read_text()[:4000]).input_ids[:384]
    rows = torch.tensor(ids).view(3, 128)
    rows[:, 0] = tokenizer.bos_token_id
    model = AutoModelForCausalLM.from_pretrained(dense)
    with torch.no_grad():
        log_NSV = model(input_ids=rows).logits.log_softmax(-1)
    losses = -log_NSV[:, 64:-1].gather(-1, rows[:, 65:, None]).flatten()
    report = evaluate(EvalConfig(model=str(dense), context=128, chunks=3))
    assert report.perplexity == pytest.approx(float(losses.mean().exp()), rel=1e-5)
    assert report.counted == 3 * 63
    error = report.perplexity * float(losses.std(correction=0)) / math.sqrt(len(losses) - 1)
    assert report.perplexity_error == pytest.approx(error, rel=1e-4)


def test_divergence_from_another_model(dense: Path, make_checkpoint: Make):
    other = make_checkpoint("mistral", seed=5)
    (rows, ours), (_, theirs) = (whole_model_log_probabilities(folder, 1024, 128) for folder in (dense, other))
    report = evaluate(papers(dense, tokens=1024, against=str(other)))
    kl = (theirs.exp() * (theirs - ours)).sum(-1).flatten().double()
    difference = (theirs - ours).gather(-1, rows[:, 1:, None]).flatten().double()
    ratio = float(difference.mean().exp())
    assert report.kl_mean == pytest.approx(float(kl.mean()), rel=1e-4)
    assert report.kl_median == pytest.approx(float(kl.quantile(0.5)), rel=1e-4)
    assert report.kl_99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-4)
    assert report.kl_max == pytest.approx(float(kl.max()), rel=1e-4)
    assert report.top1_agreement == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()))
    assert report.perplexity_ratio == pytest.approx(ratio, rel=1e-4)
    assert report.perplexity_ratio == pytest.approx(report.perplexity / report.against_perplexity)
    error = ratio * float(difference.std(correction=0)) / math.sqrt(len(difference) - 1)
    assert report.perplexity_ratio_error == pytest.approx(error, rel=1e-3)


def test_a_model_does_not_diverge_from_itself(dense: Path):
    report = evaluate(papers(dense, tokens=1024, against=str(dense)))
    assert (report.kl_mean, report.kl_max, report.top1_agreement) == (0, 0, 1)
    assert (report.perplexity_ratio, report.perplexity_ratio_error) == (1, 0)
    assert report.against_perplexity == report.perplexity


def test_a_gguf_file_does_not_diverge_from_itself(dense: Path, tmp_path: Path):
    file = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=dense, out=file, type_name="Q8_0"))
    report = evaluate(EvalConfig(model=str(file), context=64, chunks=2, against=str(file), threads=1))
    assert abs(report.kl_mean) < 1e-6
    assert report.kl_max < 1e-6
    assert report.mode == "dense"


def test_windows_are_no_longer_than_the_model_s_context(dense: Path, tmp_path: Path):
    file = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=dense, out=file, type_name="Q8_0"))
    for model in (str(dense), str(file)):
        report = evaluate(EvalConfig(model=model, context=512, chunks=1, threads=1))
        assert (report.context, report.tokens, report.counted) == (256, 256, 127)


def test_a_gguf_file_has_the_checkpoint_s_perplexity(dense: Path, tmp_path: Path):
    file = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=dense, out=file, type_name="F32"))
    report = evaluate(EvalConfig(model=str(file), context=64, chunks=4, against=str(dense), threads=1))
    assert report.perplexity_ratio == pytest.approx(1, abs=1e-5)
    assert report.kl_max < 1e-6
    assert report.top1_agreement == 1


@pytest.mark.parametrize("method", ["llama.cpp", "papers"])
def test_spelled_special_tokens_are_taken_as_the_method_does_or_as_asked(dense: Path, tmp_path: Path, method: str):
    """The same of a checkpoint, of its GGUF file, and of what transformers runs; transformers says the tokens."""
    text = tmp_path / "t.txt"
    text.write_text("one <s> two </s> three <unk> four " * 20)
    export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf", type_name="F32"))
    tokenizer = load_tokenizer(dense)
    wanted = {flag: tokenizer(text.read_text(), split_special_tokens=not flag).input_ids for flag in (True, False)}
    assert len(wanted[True]) < len(wanted[False])
    for model in (CheckpointScorer(dense), TransformersScorer(dense), GgufScorer(tmp_path / "m.gguf", "dense", 1)):
        for flag, tokens in wanted.items():
            assert model.encode(text.read_text(), parse_special=flag) == tokens
    how = {"data": (Source(path=str(text)),), "method": method, "context": 16, "chunks": 4}
    reports = {
        (flag, model): evaluate(EvalConfig(model=model, parse_special=flag, **how))
        for flag in (None, True, False) for model in (str(dense), str(tmp_path / "m.gguf"))
    }  # fmt: skip
    for model in (str(dense), str(tmp_path / "m.gguf")):
        asked, other = method == "papers", method != "papers"
        assert reports[None, model].parse_special is asked
        assert reports[None, model].perplexity == reports[asked, model].perplexity != reports[other, model].perplexity


def test_density_is_the_share_that_fires(dense: Path, tmp_path: Path):
    relufy(RelufyConfig(model=str(dense), out=tmp_path / "s", recover="none", align=False))
    report = evaluate(papers(tmp_path / "s", tokens=1024))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "s", trust_remote_code=True)
    fired: list[float] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, x: fired.append(float((x[0] != 0).float().mean())))
    rows, _ = whole_model_log_probabilities(tmp_path / "s", 1024, 128, code=True)
    with torch.no_grad():
        model(input_ids=rows)
    assert report.density == pytest.approx(fired, abs=1e-4)
    assert report.mean_density == pytest.approx(sum(fired) / len(fired), abs=1e-4)


def test_density_per_expert_and_per_corpus(make_checkpoint: Make, tmp_path: Path):
    relufy(RelufyConfig(model=str(make_checkpoint("mixtral")), out=tmp_path / "s", recover="none", align=False))
    (tmp_path / "one.txt").write_text("the sea and the ship " * 200)
    sources = (Source(path=HELDOUT), Source(path=str(tmp_path / "one.txt")))
    report = evaluate(papers(tmp_path / "s", tokens=1024, data=sources))
    for layer, (shares, tokens) in enumerate(zip(report.expert_density, report.expert_tokens, strict=True)):
        assert len(shares) == 4
        assert sum(tokens) == pytest.approx(1)
        weighted = sum(share * part for share, part in zip(shares, tokens, strict=True))
        assert weighted == pytest.approx(report.density[layer])
    assert [corpus.name for corpus in report.corpora] == [HELDOUT, str(tmp_path / "one.txt")]
    assert report.corpora[0].density != report.corpora[1].density
    mean = sum(corpus.density for corpus in report.corpora) / 2  # the same number of tokens
    assert mean == pytest.approx(report.mean_density)
    losses = [math.log(corpus.perplexity) for corpus in report.corpora]
    assert math.log(report.perplexity) == pytest.approx(sum(losses) / 2)


def test_a_model_that_only_transformers_knows(dense: Path, tmp_path: Path):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "q")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "q" / name).write_bytes((dense / name).read_bytes())
    rows, log_NSV = whole_model_log_probabilities(tmp_path / "q", 1024, 128)
    expected = math.exp(-float(log_NSV.gather(-1, rows[:, 1:, None]).mean()))
    assert evaluate(papers(tmp_path / "q", tokens=1024)).perplexity == pytest.approx(expected, rel=1e-5)


def test_other_vocabularies_cannot_be_compared(dense: Path, make_checkpoint: Make):
    other = make_checkpoint("mistral", vocab_size=5000)
    with pytest.raises(TsconvertError) as caught:
        evaluate(papers(dense, tokens=512, against=str(other)))
    assert str(caught.value) == ("the models have vocabularies of 4096 and 5000 tokens; compare models of one family")


def test_modes_are_for_gguf_files(dense: Path):
    with pytest.raises(TsconvertError, match="a checkpoint always computes all of its neurons"):
        evaluate(EvalConfig(model=str(dense), mode="predicted"))
