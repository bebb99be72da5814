"""GGUF to GGUF: the same bytes as one pass from the checkpoint, shards in and out, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tsconvert.cli import main
from tsconvert.common.errors import TsconvertError
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.quantize import QuantizeConfig, quantize
from tsconvert.quant.types.encoding import quantize as encode_rows

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def wide(make_checkpoint: Make) -> Path:
    """A model whose rows K-quants fit."""
    return make_checkpoint("mixtral", hidden_size=256, intermediate_size=512, num_hidden_layers=2)


@pytest.fixture(scope="module")
def plain(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "m.gguf"
    export_unverified(ExportConfig(model=wide, out=out, type_name="F32"))
    return out


def same(a: Path, b: Path) -> None:
    ours, theirs = GgufFile(a), GgufFile(b)
    assert list(ours.tensors) == list(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert (ours.tensors[name].type_name, ours.tensors[name].shape) == (tensor.type_name, tensor.shape), name
        assert np.array_equal(ours.tensors[name].raw, tensor.raw), name
    split = ("split.no", "split.count", "split.tensors.count")
    assert {k: v for k, v in ours.metadata.items() if k not in split} == {
        k: v for k, v in theirs.metadata.items() if k not in split
    }


def refusal(**options) -> str:
    with pytest.raises(TsconvertError) as caught:
        quantize(QuantizeConfig(**options))
    return str(caught.value)


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "F16"])
def test_it_is_what_one_pass_from_the_checkpoint_gives(wide: Path, plain: Path, tmp_path: Path, mix: str):
    export_unverified(ExportConfig(model=wide, out=tmp_path / "pass.gguf", type_name=mix))
    report = quantize(QuantizeConfig(source=plain, out=tmp_path / "q.gguf", type_name=mix))
    same(tmp_path / "q.gguf", tmp_path / "pass.gguf")
    assert report.size_bytes == (tmp_path / "q.gguf").stat().st_size
    assert report.source_bytes == plain.stat().st_size
    assert sum(report.types.values()) == sum(t.size_bytes for t in GgufFile(report.out).tensors.values())


def test_a_sparse_file_keeps_its_predictors_and_order(drelu: Path, make_predictors: Make, tmp_path: Path):
    source = tmp_path / "s.gguf"
    export_unverified(ExportConfig(model=drelu, out=source, type_name="F32", predictors=make_predictors(drelu)))
    quantize(QuantizeConfig(source=source, out=tmp_path / "q.gguf", type_name="Q8_0"))
    before, after = GgufFile(source), GgufFile(tmp_path / "q.gguf")
    assert after.tensors["blk.0.ffn_down_t.weight"].type_name == "Q8_0"
    for name, tensor in before.tensors.items():
        if ".fc" in name or "norm" in name:
            assert after.tensors[name].type_name == tensor.type_name
            assert np.array_equal(after.tensors[name].raw, tensor.raw)
    assert after.metadata["turbosparse.predictor.rank"] == before.metadata["turbosparse.predictor.rank"]
    assert after.metadata["general.file_type"] == 7


def test_shards_out_and_in(wide: Path, plain: Path, tmp_path: Path):
    export_unverified(ExportConfig(model=wide, out=tmp_path / "one.gguf", type_name="F16"))
    sharded = export_unverified(
        ExportConfig(model=wide, out=tmp_path / "many.gguf", type_name="F16", split_max_bytes=3_000_000)
    )
    names = sorted(path.name for path in tmp_path.glob("many-*.gguf"))
    count = len(names)
    assert count > 2
    assert names == [f"many-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    assert sharded.files == [str(tmp_path / name) for name in names]
    assert sharded.out == tmp_path / names[0]
    assert not (tmp_path / "many.gguf").exists()
    assert max((tmp_path / name).stat().st_size for name in names) <= 3_000_000
    same(sharded.out, tmp_path / "one.gguf")
    assert GgufFile(sharded.out).shards == count
    assert GgufFile(sharded.out).size_bytes == sharded.size_bytes

    both = quantize(
        QuantizeConfig(source=sharded.out, out=tmp_path / "q.gguf", type_name="Q8_0", split_max_bytes=1_500_000)
    )
    quantize(QuantizeConfig(source=tmp_path / "one.gguf", out=tmp_path / "p.gguf", type_name="Q8_0"))
    assert len(both.files) > 1
    same(both.out, tmp_path / "p.gguf")


def test_keys_of_shards_are_llama_cpps(wide: Path, tmp_path: Path):
    import gguf

    report = export_unverified(
        ExportConfig(model=wide, out=tmp_path / "m.gguf", type_name="F16", split_max_bytes=3_000_000)
    )
    for number, path in enumerate(report.files):
        fields = gguf.GGUFReader(path).fields
        kinds = {name: fields[name].types[0].name for name in fields if name.startswith("split.")}
        assert kinds == {"split.no": "UINT16", "split.count": "UINT16", "split.tensors.count": "INT32"}
        assert int(fields["split.no"].parts[-1][0]) == number
        assert ("general.architecture" in fields) == (number == 0)


def test_damaged_sets_of_shards(wide: Path, tmp_path: Path):
    report = export_unverified(
        ExportConfig(model=wide, out=tmp_path / "m.gguf", type_name="F16", split_max_bytes=3_000_000)
    )
    first, second, *_ = map(Path, report.files)
    count = len(report.files)

    def sentence(path: Path) -> str:
        with pytest.raises(TsconvertError) as caught:
            GgufFile(path)
        return str(caught.value)

    assert sentence(second) == f"{second}: is not the first of {count} shards; give {first}"
    renamed = tmp_path / "renamed.gguf"
    first.rename(renamed)
    assert sentence(renamed) == (
        f"{renamed}: is one of {count} shards, and shards are called NAME-00001-of-{count:05}.gguf; give them their"
        " names again"
    )
    renamed.rename(first)
    moved = second.rename(tmp_path / "elsewhere.gguf")
    assert sentence(first) == f"{second}: no such file; give a GGUF file"
    second.write_bytes(first.read_bytes())
    assert sentence(first) == f"{second}: is not shard 2 of {count}; download or write it again"
    moved.replace(second)
    assert GgufFile(first).shards == count


def test_what_is_quantized_already_needs_to_be_allowed(plain: Path, tmp_path: Path):
    once = tmp_path / "q8.gguf"
    quantize(QuantizeConfig(source=plain, out=once, type_name="Q8_0"))
    assert refusal(source=once, out=tmp_path / "q4.gguf", type_name="Q4_0") == (
        f"{once}: blk.0.attn_k.weight is Q8_0 already, and errors add up; start from an F16, BF16 or F32 file, or give"
        " --allow-requantize"
    ).replace("blk.0.attn_k", "output")
    report = quantize(QuantizeConfig(source=once, out=tmp_path / "q4.gguf", type_name="Q4_0", allow_requantize=True))
    tensors = GgufFile(tmp_path / "q4.gguf").tensors
    assert report.tensors["blk.0.attn_k.weight"] == "Q4_0"
    decoded = GgufFile(once).tensors["blk.0.attn_k.weight"].to_float32()
    expected = encode_rows(decoded, "Q4_0").reshape(-1)
    assert np.array_equal(tensors["blk.0.attn_k.weight"].raw, expected)
    again = quantize(QuantizeConfig(source=once, out=tmp_path / "same.gguf", type_name="Q8_0"))
    same(again.out, once)


def test_a_nan_stops_before_anything_is_written(plain: Path, tmp_path: Path):
    damaged = tmp_path / "d.gguf"
    content = bytearray(plain.read_bytes())
    tensor = GgufFile(plain).tensors["blk.1.ffn_up_exps.weight"]
    at = tensor.offset + 4 * (tensor.shape[1] + 5) * tensor.shape[2]  # expert 1, row 5
    content[at : at + 8] = np.array([np.nan, np.inf], "<f4").tobytes()
    damaged.write_bytes(content)
    row = tensor.shape[1] + 5
    assert refusal(source=damaged, out=tmp_path / "q.gguf", type_name="Q4_K_M") == (
        f"{damaged}: tensor blk.1.ffn_up_exps.weight holds 2 values that are NaN or infinite, the first in row {row};"
        " the weights are damaged or training diverged, go back to a sound checkpoint"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["d.gguf"]


def test_what_is_no_model_of_ours_to_quantize(drelu: Path, make_predictors: Make, plain: Path, tmp_path: Path):
    power = tmp_path / "p.gguf"
    predictors = make_predictors(drelu, rank=32)
    export_unverified(ExportConfig(model=drelu, out=power, target="powerinfer", predictors=predictors))
    assert refusal(source=power, out=tmp_path / "o.gguf", type_name="Q8_0") == (
        f"{power}: PowerInfer takes few types and computes garbage with the others; export the model again with"
        " --target powerinfer and the --type that it is to have"
    )
    assert refusal(source=plain, out=plain, type_name="Q8_0") == (
        f"{plain}: exists already; choose another --out or remove it first"
    )
    assert refusal(source=plain, out=tmp_path / "o.gguf", type_name="Q8_0", tensor_types=(("fnord", "F16"),)) == (
        "--tensor-type 'fnord' fits none of this file's matrices; the names are like blk.0.ffn_gate.weight, and"
        " --dry-run --json lists them"
    )


def test_the_command(plain: Path, tmp_path: Path):
    out = tmp_path / "q.gguf"
    arguments = [
        "quantize",
        str(plain),
        "--out",
        str(out),
        "--type",
        "q4_k_m",
        "--tensor-type",
        r"attn_v=Q8_0",
        "--json",
    ]
    planned = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert planned.exit_code == 0, planned.stderr
    assert not out.exists()
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    found, expected = json.loads(done.stdout), json.loads(planned.stdout)
    assert found["tensors"] == expected["tensors"]
    assert found["size_bytes"] == expected["size_bytes"] == out.stat().st_size
    assert found["tensors"]["blk.1.attn_v.weight"] == "Q8_0"
    assert found["tensors"]["blk.1.ffn_down_exps.weight"] == "Q6_K"
    assert found["tensors"]["output.weight"] == "Q6_K"
    assert found["tensors"]["blk.1.ffn_gate_inp.weight"] == "F32"
