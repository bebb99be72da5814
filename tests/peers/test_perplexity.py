"""Perplexity and divergence of SmolLM2's GGUF files: ours, and what llama-perplexity says of the same files and text.

llama.cpp has no Python package with that program, so its figures are kept, with the commands that made them, in
docs/benchmarks/eval_llama_cpp_2cores_2026-11-23.md. Files that both write have the same bytes (test_quantize.py).
Rounding the activations to 8 bits, which both do, makes figures of quantized files depend on the order of sums: there
llama-perplexity differs from itself by up to 1.3 % on a few windows (other --ubatch-size), so those need many windows.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tsconvert import embedded
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, EvalReport, evaluate
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.tokenizer import GgufTokenizer
from tsconvert.text.sources import Source

pytestmark = pytest.mark.peer
TEXT = (Source(path=str(embedded.text("heldout.txt"))),)
# llama-perplexity -c 512, after 1 window
F16_ONE = 37.9954
# llama-perplexity -f embedded/text/train.txt -c 512 -t 1 --chunks 800
EIGHT_HUNDRED = {"Q8_0": 36.4602, "Q4_K_M": 38.1102}
# llama-perplexity -c 512 --chunks 8 --kl-divergence, the reference being the F16 file: mean, median, 99 %, top 1
Q4_0_EIGHT = (0.295023, 0.243552, 1.083083, 0.68235)


@pytest.fixture(scope="module")
def exported(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """exported("Q8_0"): SmolLM2 as a file for llama.cpp."""
    folder = tmp_path_factory.mktemp("smollm2")

    def export(type_name: str) -> Path:
        out = folder / f"{type_name}.gguf"
        if not out.exists():
            export_unverified(ExportConfig(model=smollm2, out=out, type_name=type_name, target="llama.cpp"))
        return out

    return export


def scored(file: Path, data: tuple[Source, ...] = TEXT, **options: object) -> EvalReport:
    return evaluate(EvalConfig(model=str(file), mode="dense", data=data, **options))


SPELLED = "Once <s> upon </s> a <unk> time, <|im_start|>user\nwho?<|im_end|> there <0x0A> were <|endoftext|> six. "


@pytest.mark.parametrize("parse_special", [None, True])
def test_text_that_spells_special_tokens_has_llama_perplexity_s_figure(
    dense: Path, llama_cpp: Callable, tmp_path: Path, parse_special: bool | None
):
    """Its tokens are those of llama_tokenize with add_special and, unless asked, without parse_special."""
    export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf", type_name="F32", target="llama.cpp"))
    (tmp_path / "t.txt").write_text(SPELLED * 10)
    peer, context, windows = llama_cpp(tmp_path / "m.gguf"), 32, 3
    tokens = peer.encode(SPELLED * 10, parse_special=bool(parse_special))
    losses = []
    for start in range(0, windows * context, context):
        row = [tokens[0], *tokens[start + 1 : start + context]]
        losses += [-peer.logprobs(row[:at], 4096)[row[at]] for at in range(context // 2 + 1, context)]
    source = (Source(path=str(tmp_path / "t.txt")),)
    found = scored(tmp_path / "m.gguf", source, context=context, chunks=windows, parse_special=parse_special)
    assert found.counted == len(losses)
    assert found.parse_special is bool(parse_special)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_the_same_tokens_as_llama_cpp_with_and_without_parse_special(
    exported: Callable[[str], Path], llama_cpp: Callable
):
    peer = llama_cpp(exported("F16"))
    for huggingface in (True, False):
        tokenizer = GgufTokenizer(GgufFile(exported("F16")), huggingface=huggingface)
        for parse_special in (True, False):
            assert tokenizer.encode(SPELLED, parse_special=parse_special) == peer.encode(
                SPELLED, parse_special=parse_special
            )


def test_float_files_have_llama_perplexity_s_figure(exported: Callable[[str], Path]):
    assert scored(exported("F16"), chunks=1).perplexity == pytest.approx(F16_ONE, rel=1e-3)


@pytest.mark.slow  # five minutes a type on two cores
@pytest.mark.parametrize("type_name", EIGHT_HUNDRED)
def test_quantized_files_have_llama_perplexity_s_figure(exported: Callable[[str], Path], type_name: str):
    found = scored(exported(type_name), data=(Source(path=str(embedded.text("train.txt"))),), chunks=800)
    assert found.perplexity == pytest.approx(EIGHT_HUNDRED[type_name], rel=1e-3)


@pytest.mark.slow
def test_the_divergence_of_q4_0_is_llama_perplexity_s(exported: Callable[[str], Path]):
    found = scored(exported("Q4_0"), chunks=8, against=str(exported("F16")))
    assert found.kl_mean == pytest.approx(Q4_0_EIGHT[0], rel=0.05)
    assert found.kl_median == pytest.approx(Q4_0_EIGHT[1], rel=0.05)
    assert found.kl_99 == pytest.approx(Q4_0_EIGHT[2], rel=0.15)
    assert found.top1_agreement == pytest.approx(Q4_0_EIGHT[3], abs=0.02)
