"""Files of a size: how large, how much better than the mix of that size, repeated, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tsconvert.cli import main
from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.perplexity.config import EvalConfig
from tsconvert.evaluate.perplexity.evaluate import evaluate
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.imatrix.collect import ImatrixConfig, imatrix
from tsconvert.quant.imatrix.file import load_imatrix, save_imatrix
from tsconvert.quant.quantize import QuantizeConfig, quantize
from tsconvert.text.sources import Source

Make = Callable[..., Path]
TINY = "tiny-mistral"


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imatrix") / "i.gguf"
    report = imatrix(ImatrixConfig(model=TINY, out=out, tokens=4096, context=128, slope_tokens=2048))
    assert report.slopes == report.entries + 1  # the embedding has slopes and no entry
    assert [path.name for path in out.parent.iterdir()] == ["i.gguf"]
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "m.gguf"
    export_unverified(ExportConfig(model=TINY, out=out, type_name="F32"))
    return out


def refusal(**options) -> str:
    with pytest.raises(TsconvertError) as caught:
        quantize(QuantizeConfig(**options))
    return str(caught.value)


def bits(path: Path) -> float:
    tensors = GgufFile(path).tensors.values()
    return 8 * sum(each.size_bytes for each in tensors) / sum(float(np.prod(each.shape)) for each in tensors)


@pytest.mark.parametrize("mix", ["Q4_0", "Q5_K_M"])
def test_at_a_mixs_size_predictions_are_closer(plain: Path, matrix: Path, tmp_path: Path, mix: str):
    fixed = quantize(QuantizeConfig(source=plain, out=tmp_path / "mix.gguf", type_name=mix, imatrix=matrix))
    size = fixed.size_bytes
    sized = quantize(QuantizeConfig(source=plain, out=tmp_path / "size.gguf", target_bytes=size, imatrix=matrix))
    assert 0.995 * size <= (tmp_path / "size.gguf").stat().st_size == sized.size_bytes <= size + 2048  # the recipe
    scored = [
        evaluate(EvalConfig(model=str(each.out), against=TINY, tokens=4096, context=256)) for each in (fixed, sized)
    ]
    assert scored[1].kl_mean < 0.85 * scored[0].kl_mean
    assert sized.recipe is not None
    assert sized.recipe.divergence == pytest.approx(scored[1].kl_mean, rel=0.4)


def test_one_pass_and_a_gguf_file_get_the_same_types_and_a_recipe_repeats_them(
    plain: Path, matrix: Path, tmp_path: Path
):
    one = export_unverified(ExportConfig(model=TINY, out=tmp_path / "a.gguf", target_bits=4.9, imatrix=matrix))
    two = quantize(QuantizeConfig(source=plain, out=tmp_path / "b.gguf", target_bits=4.9, imatrix=matrix))
    assert one.tensors == two.tensors
    content = one.out.read_bytes()
    assert two.out.read_bytes() == content
    assert bits(one.out) == pytest.approx(4.9, rel=0.005)
    assert bits(one.out) <= 4.9
    stored = json.loads(GgufFile(one.out).metadata["tsconvert.recipe"])
    assert stored["asked"] == "--target-bits 4.9"
    assert stored["types"].items() <= one.tensors.items()
    report = one.to_json()
    (tmp_path / "report.json").write_text(json.dumps(report))
    tried = report["recipe"]["tensors"]["blk.0.ffn_down.weight"]["tried"]
    assert tried["Q2_K"] > tried["Q4_K"] > tried["Q6_K"] > tried["Q8_0"] > tried["F16"]
    for number, recipe in enumerate((one.out, tmp_path / "report.json")):
        repeated = tmp_path / f"{number}.gguf"
        quantize(QuantizeConfig(source=plain, out=repeated, recipe=recipe, imatrix=matrix))
        ours, theirs = GgufFile(repeated).tensors, GgufFile(one.out).tensors
        assert all(np.array_equal(ours[name].raw, theirs[name].raw) for name in theirs)


def test_named_types_stay_and_candidates_are_kept_to(plain: Path, matrix: Path, tmp_path: Path):
    report = quantize(
        QuantizeConfig(
            source=plain, out=tmp_path / "a.gguf", target_bits=7.0, imatrix=matrix, candidates=("q4_0", "q8_0"),
            tensor_types=(("attn_v", "F16"),), embedding_type="Q6_K",
        )
    )  # fmt: skip
    matrices = {name: kind for name, kind in report.tensors.items() if "norm" not in name}
    assert {matrices.pop(f"blk.{layer}.attn_v.weight") for layer in range(3)} == {"F16"}
    assert matrices.pop("token_embd.weight") == "Q8_0"  # 128 columns are no K-quant's
    assert set(matrices.values()) == {"Q4_0", "Q8_0"}


def test_what_cannot_be_met(plain: Path, matrix: Path, tmp_path: Path):
    out = tmp_path / "o.gguf"
    assert refusal(source=plain, out=out, target_bits=2.0, imatrix=matrix).startswith(
        "--target-bits 2: the smallest types make it 952.8 KB of tensors, and there is room for 463.1 KB; ask for more,"
    )
    large = quantize(QuantizeConfig(source=plain, out=out, target_bits=20.0, imatrix=matrix))
    assert large.notes[0].startswith("--target-bits 20: the largest types make it 3.7 MB of tensors, less than")
    bare = tmp_path / "bare.gguf"
    imatrix(ImatrixConfig(model=TINY, out=bare, tokens=512, context=128))
    assert refusal(source=plain, out=tmp_path / "p.gguf", target_bytes=10**6, imatrix=bare) == (
        f"{bare}: does not say what errors of each matrix cost; leave --imatrix out, and it is measured, or run"
        f" `tsconvert imatrix {plain} --out FILE.gguf --slopes 4K` and give --imatrix FILE.gguf"
    )
    assert refusal(source=plain, out=tmp_path / "p.gguf") == (
        "what types to write: give one of --type, --target-size, --target-bits, --target-bytes-a-token and --recipe;"
        " --dry-run without one lists the sizes of all mixes"
    )


def test_without_an_importance_matrix_it_is_measured_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out, kept, text = tmp_path / "m.q.gguf", tmp_path / "m.q.imatrix.gguf", tmp_path / "text.txt"
    text.write_text(" ".join(f"The {number}th sentence says that {number} is {number}." for number in range(2000)))
    asked = ExportConfig(model=TINY, out=out, target_bytes=1_600_000, data=(Source(path=str(text)),))
    with pytest.raises(TsconvertError) as caught:
        export_unverified(replace(asked, dry_run=True))
    assert str(caught.value) == (
        "--dry-run: what errors of each matrix cost has to be measured, and nothing is written; run `tsconvert imatrix"
        f" {TINY} --out {kept} --tokens 4K --slopes 4K --data {text}` first"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    command = ["export-gguf", TINY, "--out", str(out), "--no-verify", "--target-size", "1.6M", "--data", str(text)]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert 0.995 * 1.6e6 <= out.stat().st_size <= 1.6e6 + 2048
    content, matrix = out.read_bytes(), load_imatrix(kept)
    assert (matrix.datasets, matrix.chunks * matrix.chunk_tokens) == ((str(text),), 4096)
    assert matrix.slopes.keys() == matrix.entries.keys() | {"token_embd.weight"}
    out.unlink()
    capfd.readouterr()
    export_unverified(asked)
    assert f"what errors cost is taken from {kept}" in capfd.readouterr().err
    assert out.read_bytes() == content
    out.unlink()
    with pytest.raises(TsconvertError) as caught:
        export_unverified(replace(asked, data=()))
    assert str(caught.value) == f"{kept}: was measured on other text, {text}; remove it, or give --imatrix {kept}"


def test_every_size_is_met(plain: Path, matrix: Path, tmp_path: Path):
    for size in range(1_450_000, 4_100_000, 150_000):
        made = quantize(
            QuantizeConfig(source=plain, out=tmp_path / "o.gguf", target_bytes=size, imatrix=matrix, dry_run=True)
        )
        assert 0.995 * size <= made.size_bytes <= size + 2048


def test_a_mix_is_kept_to_where_nothing_is_much_better(plain: Path, matrix: Path, tmp_path: Path):
    """Where errors of all weights cost alike, one type for all is the best choice."""
    measured, tensors, even = load_imatrix(matrix), GgufFile(plain).tensors, tmp_path / "even.gguf"
    slopes = {name: np.full_like(found, tensors[name].shape[0]) for name, found in measured.slopes.items()}
    save_imatrix(replace(measured, slopes=slopes), even)
    size = quantize(QuantizeConfig(source=plain, out=tmp_path / "mix.gguf", type_name="Q8_0", imatrix=even))
    made = quantize(QuantizeConfig(source=plain, out=tmp_path / "o.gguf", target_bytes=size.size_bytes, imatrix=even))
    assert made.tensors == size.tensors
    assert made.notes[0] == (
        f"--target-size {size.size_bytes}: these are the types of Q8_0; no others of this size are expected to do much"
        " better"
    )


def test_a_recipe_of_another_model(plain: Path, matrix: Path, dense: Path, tmp_path: Path):
    other = tmp_path / "other.gguf"
    export_unverified(ExportConfig(model=dense, out=other, type_name="Q8_0"))
    assert refusal(source=plain, out=tmp_path / "p.gguf", recipe=other) == (
        f"{other}: has no type for blk.2.attn_k.weight; give the recipe of a model of this shape"
    )
    (tmp_path / "r.json").write_text('{"tensors": {"a": "Q9"}}')
    assert refusal(source=plain, out=tmp_path / "p.gguf", recipe=tmp_path / "r.json") == (
        f"{tmp_path / 'r.json'}: holds no types of tensors; give a GGUF file, the JSON that lies beside one, or the"
        " output of quantize --json"
    )


def test_bytes_a_token_of_a_sparse_file(drelu: Path, make_predictors: Make, tmp_path: Path):
    """What fires rarely is read rarely: its bits cost little, and it gets more than at the same size of the file."""
    matrix, source = tmp_path / "i.gguf", tmp_path / "s.gguf"
    imatrix(ImatrixConfig(model=str(drelu), out=matrix, tokens=512, context=128, slope_tokens=512))
    export_unverified(ExportConfig(model=drelu, out=source, type_name="F32", predictors=make_predictors(drelu)))
    rare = 0.1

    def read(path: Path) -> float:
        tensors = GgufFile(path).tensors
        total = 0.0
        for name, tensor in tensors.items():
            row = name == "token_embd.weight" and "output.weight" in tensors
            ffn = "ffn_" in name and "norm" not in name
            order = name.endswith("order")
            share = 1 / tensor.shape[0] if row else 0 if order else rare if ffn else 1
            total += share * tensor.size_bytes
        return total

    half = 0.3 * read(source)
    by_token = quantize(
        QuantizeConfig(
            source=source, out=tmp_path / "t.gguf", target_token_bytes=round(half), density=rare, imatrix=matrix
        )
    )
    assert 0.995 * half <= read(by_token.out) <= half + 1
    by_size = quantize(
        QuantizeConfig(source=source, out=tmp_path / "z.gguf", target_bytes=by_token.size_bytes, imatrix=matrix)
    )
    assert read(by_size.out) > half
    assert refusal(source=source, out=tmp_path / "o.gguf", target_bits=6.0) == (
        f"{source}: its neurons are in another order than the model's, so what errors cost cannot be measured on it;"
        " run `tsconvert imatrix FOLDER --out FILE.gguf --slopes 4K` on the folder that it was made of and give"
        " --imatrix FILE.gguf"
    )
    assert refusal(source=source, out=tmp_path / "o.gguf", target_token_bytes=round(half), imatrix=matrix) == (
        "--target-bytes-a-token: how many neurons a token reads is not known; give --density, such as 0.12"
    )


def test_a_copy_is_the_file_in_other_shards(matrix: Path, plain: Path, tmp_path: Path):
    source = quantize(QuantizeConfig(source=plain, out=tmp_path / "s.gguf", type_name="Q4_K_M", imatrix=matrix)).out
    split = quantize(QuantizeConfig(source=source, out=tmp_path / "c.gguf", type_name="copy", split_max_bytes=600_000))
    assert len(split.files) > 2
    merged = quantize(QuantizeConfig(source=split.out, out=tmp_path / "m.gguf", type_name="COPY"))
    assert merged.out.read_bytes() == source.read_bytes()
    assert refusal(source=source, out=tmp_path / "o.gguf", type_name="COPY", imatrix=matrix, pure=True) == (
        "--pure, --imatrix: --type COPY keeps every tensor as it is; leave it out"
    )
    assert refusal(source=source, out=tmp_path / "o.gguf", dry_run=True, output_type="Q8_0") == (
        "--output-tensor-type: sizes are listed of mixes as they are; leave it out"
    )


def test_a_dry_run_without_a_type_lists_all_mixes(plain: Path, tmp_path: Path):
    run = CliRunner().invoke(main, ["quantize", str(plain), "--out", str(tmp_path / "o.gguf"), "--dry-run", "--json"])
    assert run.exit_code == 0, run.output
    sizes = json.loads(run.stdout)["mixes"]
    for mix in ("Q8_0", "Q4_K_M", "IQ4_XS"):
        made = quantize(QuantizeConfig(source=plain, out=tmp_path / f"{mix}.gguf", type_name=mix))
        assert made.size_bytes == pytest.approx(sizes[mix], abs=64)
    exported = export_unverified(ExportConfig(model=TINY, out=tmp_path / "e.gguf", dry_run=True))
    assert exported.mixes is not None
    assert exported.mixes["Q4_K_M"] == sizes["Q4_K_M"]


def test_a_card_that_is_left_alone_is_written_again(dense: Path, tmp_path: Path):
    out = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=dense, out=out, type_name="Q8_0"))
    out.unlink()
    assert (tmp_path / "m.gguf.md").is_file()
    export_unverified(ExportConfig(model=dense, out=out, type_name="Q4_0"))
    assert "Q4_0" in (tmp_path / "m.gguf.md").read_text()
    shutil.copy(out, tmp_path / "kept.gguf")
