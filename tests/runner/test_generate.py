"""Generation, the run and bench commands, and an exported model from end to end."""

import io
import json

import numpy as np
import pytest

from tsconvert import cli, embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.predictors.folder import PredictorSet, save_predictors
from tsconvert.predictors.predictor import Predictor
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.bench.file_bench import BenchConfig, bench
from tsconvert.runner.console import RunConfig, run
from tsconvert.runner.model import load
from tsconvert.runner.sampling import Sampling

PROMPT = "Once upon a time"


@pytest.fixture(scope="session")
def sparse_folder(dense, tmp_path_factory):
    out = tmp_path_factory.mktemp("relufied") / "model"
    relufy(RelufyConfig(model=str(dense), out=out, recover="none", align=False))
    return out


@pytest.fixture(scope="session")
def sparse_file(sparse_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("gguf") / "sparse.gguf"
    export_unverified(ExportConfig(model=sparse_folder, out=out, type_name="F32"))
    return out


@pytest.fixture(scope="session")
def dense_file(dense, tmp_path_factory):
    out = tmp_path_factory.mktemp("gguf") / "dense.gguf"
    export_unverified(ExportConfig(model=dense, out=out, type_name="Q8_0"))
    return out


def transformers_greedy(folder, tokens, limit):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    out = model.generate(
        torch.tensor([tokens]), max_new_tokens=limit, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return out[0, len(tokens) :].tolist()


@pytest.mark.filterwarnings("ignore")
def test_greedy_tokens_are_those_of_transformers(sparse_folder, sparse_file):
    with load(sparse_file, threads=2) as model:
        assert model.mode == "exact"
        generation = model.generate(PROMPT, limit=32, stop_at_eos=False)
        pieces = list(generation)
        tokens = model.tokenizer.encode(PROMPT)
        assert generation.tokens == transformers_greedy(sparse_folder, tokens, 32)
        assert "".join(piece.text for piece in pieces) == generation.text
        whole = model.tokenizer.decode([*tokens, *generation.tokens])
        assert whole == model.tokenizer.decode(tokens) + generation.text
        assert generation.finish == "length"
        assert model.density.tokens == len(tokens) + 31


def test_both_sparse_targets_predict_alike(make_checkpoint, tmp_path):
    """PowerInfer's predictors see the residual before the norm: folded by the exporter, they name the same neurons."""
    folder = make_checkpoint("mistral", intermediate_size=1024)
    relufy(RelufyConfig(model=str(folder), out=tmp_path / "sparse", recover="none", align=False))
    spec, rng = open_checkpoint(tmp_path / "sparse").spec, np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float16).astype(np.float32)  # noqa: E731
    ffns = [[Predictor(fc1_RD=draw(20, spec.width), fc2_FR=draw(spec.neurons, 20))] for _ in range(spec.layers)]
    fingerprint = open_checkpoint(tmp_path / "sparse").fingerprint
    save_predictors(PredictorSet(model_fingerprint=fingerprint, ffns=ffns, report={}), tmp_path / "predictors")
    logits, densities = [], []
    for target in ("sparse", "powerinfer"):
        config = ExportConfig(
            model=tmp_path / "sparse", out=tmp_path / f"{target}.gguf", type_name="F16", target=target,
            predictors=tmp_path / "predictors",
        )  # fmt: skip
        export_unverified(config)
        with load(config.out, threads=2) as model:
            assert (model.source.dialect, model.mode) == (target, "predicted")
            logits.append(model.logits(range(5, 45)))
            densities.append(model.density)
    assert np.abs(logits[0] - logits[1]).max() < 1e-3 * np.abs(logits[0]).max()
    np.testing.assert_allclose(densities[0].predicted, densities[1].predicted, atol=1e-3)
    assert 0.3 < densities[0].predicted.mean() < 0.7


def test_generation_ends_at_eos_or_at_the_context(sparse_file):
    with load(sparse_file, threads=1, context=16) as model:
        generation = model.generate([5, 6, 7], limit=100, stop_at_eos=False)
        tokens = [piece.token for piece in generation]
        assert generation.finish == "context"
        assert model.position == 16
        model.tokenizer.eos = frozenset([tokens[4]])
        first = tokens.index(tokens[4])
        again = model.generate([5, 6, 7], limit=100)
        list(again)
        assert again.finish == "eos"
        assert again.tokens == tokens[:first]


def test_a_seed_repeats_a_draw(sparse_file):
    with load(sparse_file, threads=2) as model:
        texts = []
        for seed in (1, 1, 2):
            generation = model.generate(
                PROMPT, limit=16, sampling=Sampling(temperature=2.0, seed=seed), stop_at_eos=False
            )
            list(generation)
            texts.append(generation.text)
    assert texts[0] == texts[1] != texts[2]


def call(capsys, *arguments):
    capsys.readouterr()
    try:
        cli.main([str(argument) for argument in arguments], prog_name="tsconvert")
        code = 0
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_run_prints_the_text_and_nothing_else_on_stdout(capsys, sparse_file):
    options = ["-p", PROMPT, "-n", 12, "--temp", 0, "--ignore-eos", "-t", 2]
    code, out, err = call(capsys, "run", sparse_file, *options, "--stats")
    assert code == 0
    assert err.startswith("exact, 2 threads: prompt ")
    assert "density: rows read " in err
    code, as_json, _ = call(capsys, "run", sparse_file, *options, "--json")
    found = json.loads(as_json)
    assert (found["text"] + "\n", found["generated_tokens"], found["mode"]) == (out, 12, "exact")
    assert 0 < found["density"]["mean_fired"] < 1
    for sparsity in ("dense", "exact"):
        assert call(capsys, "run", sparse_file, *options, "--sparsity", sparsity) == (0, out, "")


def test_run_reads_a_prompt_from_stdin(monkeypatch, sparse_file):
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    streams = [io.StringIO(), io.StringIO()]
    for prompt, stream in zip(["-", PROMPT], streams, strict=True):
        run(RunConfig(file=sparse_file, prompt=prompt, tokens=5, temp=0.0, ignore_eos=True, stream=stream))
    assert streams[0].getvalue() == streams[1].getvalue() != "\n"


TOO_LONG = (
    "{n} tokens do not fit into the context of 3; load the model with a larger one (trained for 256) or shorten"
    " the text"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["-p", "a", "--sparsity", "predicted"],
            "{file}: the file holds no predictors; run it with --sparsity exact, or export it with --predictors",
        ),
        (["-p", "a", "--top-p", "2"], "top_p is 2.0: it must be 0 to 1"),
        (["-p", "a", "-t", "0"], "threads is 0: it must be 1 to 256"),
        (["-p", "a b c d e f g h", "-c", "3"], TOO_LONG),
    ],
)
def test_run_refuses_in_one_sentence(capsys, sparse_file, options, message):
    from tsconvert.model.files.gguf.file import GgufFile
    from tsconvert.runner.tokenizer import GgufTokenizer

    n = len(GgufTokenizer(GgufFile(sparse_file)).encode(options[1]))
    code, out, err = call(capsys, "run", sparse_file, *options)
    assert (code, out, err) == (2, "", f"error: {message.format(file=sparse_file, n=n)}\n")


def test_a_swiglu_file_runs_dense(capsys, dense_file):
    code, out, err = call(capsys, "run", dense_file, "-p", PROMPT, "-n", 4, "--temp", 0, "--stats")
    assert code == 0
    assert err.startswith("dense, ")
    code, out, err = call(capsys, "run", dense_file, "-p", PROMPT, "--sparsity", "exact")
    assert (code, out) == (2, "")
    assert err == (
        f"error: {dense_file}: a SwiGLU model, none of whose neurons is ever zero; run it with --sparsity dense, or"
        " make it sparse with `tsconvert relufy` first\n"
    )


def test_bench_measures_every_mode_that_the_file_allows(capsys, sparse_file, dense_file):
    report = bench(BenchConfig(file=sparse_file, prompt=9, generate=4, repetitions=2, threads=2, modes=("all",)))
    assert [row.mode for row in report.rows] == ["dense", "exact"]
    assert all(row.tokens_per_s > 0 and row.prompt_tokens_per_s > 0 for row in report.rows)
    assert report.rows[0].density["rows_read"] == 1 > report.rows[1].density["rows_read"]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in str(report).splitlines()[:-1]]
    assert table[0][4:7] == ["mode", "test", "t/s"]
    assert [row[4:6] for row in table[2:]] == [["dense", "pp9"], ["dense", "tg4"], ["exact", "pp9"], ["exact", "tg4"]]
    assert report.rows[0].bytes_per_token > report.rows[1].bytes_per_token > 0
    assert report.bandwidth > 1e8
    code, out, _ = call(capsys, "bench", dense_file, "-p", 5, "-n", 3, "-r", 1, "--json")
    found = json.loads(out)
    assert (code, [row["mode"] for row in found["rows"]], found["generate"]) == (0, ["dense"], 3)
    with pytest.raises(TsconvertError, match=r"^repetitions is 0: it must be at least 1$"):
        BenchConfig(file=sparse_file, repetitions=0)


def test_the_embedded_tokenizer_survives_the_file(sparse_file):
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(embedded.folder("tiny-mistral") / "tokenizer.json"))
    with load(sparse_file, threads=1) as model:
        text = "A fox — ein Fuchs — 狐, at 12:30!"
        tokens = model.tokenizer.encode(text, special=False)
        assert tokens == reference.encode(text, add_special_tokens=False).ids
        assert np.isfinite(model.logits(model.tokenizer.encode(text))).all()
