import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.inspect.outputs import inspect
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, evaluate
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.predictors.config import PredictorConfig, Training
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.profile import profile
from tsconvert.predictors.train import train_predictors
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.imatrix.collect import ImatrixConfig, imatrix

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def sparse(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dReLU checkpoint, aligned on some text."""
    out = tmp_path_factory.mktemp("inspect") / "sparse"
    relufy(RelufyConfig(model=str(make_checkpoint()), out=out, recover="none", tokens=1024, context=128))
    return out


def rows_of(found, title: str) -> dict[str, list]:
    (table,) = [table for table in found.tables if table.title == title]
    return {str(row[0]): row for row in table.rows}


def test_a_checkpoint(dense: Path):
    found = inspect(str(dense), tensors=True)
    assert found.kind == "mistral checkpoint"
    assert found.whole
    assert found.state == "all 21 tensors are there, none holds NaN or infinity"
    assert found.facts["layers"] == 2
    assert ("model.norm.weight", "F32", [64], 256) in found.tensors
    parts = rows_of(found, "parts")
    assert parts["FFN gate"][1:5] == [2, 2 * 128 * 64, "F32", "65.5 KB"]
    assert sum(row[2] for row in parts.values()) == open_checkpoint(dense).spec.parameters
    assert "FFN gate" in str(found)
    json.dumps(found.to_json())


def test_a_checkpoint_with_a_broken_value(dense: Path, tmp_path: Path):
    folder = Path(shutil.copytree(dense, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = inspect(str(folder))
    assert not found.whole
    assert found.state == "tensor model.layers.1.mlp.up_proj.weight holds NaN or infinity"
    assert "whole" in str(found)
    assert "NO, tensor" in str(found)


def test_a_sparse_checkpoint_says_where_it_came_from(sparse: Path, tmp_path: Path):
    found = inspect(str(sparse))
    report = json.loads((sparse / "tsconvert.json").read_text())["report"]
    assert found.facts["activation"] == "drelu"
    assert found.facts["made from"] == report["source_fingerprint"]
    layers = rows_of(found, "neurons that fired in recovery")
    assert [row[1] for row in layers.values()] == [layer["density"] for layer in report["layers"]]
    other = Path(shutil.copytree(sparse, tmp_path / "s"))
    (other / "tsconvert.json").write_text("{}")
    with pytest.raises(TsconvertError, match=r"tsconvert\.json: not what relufy writes; remove it"):
        inspect(str(other))


def test_output_that_is_not_finished(tmp_path: Path):
    folder = tmp_path / "o.partial"
    folder.mkdir()
    (folder / "journal.jsonl").write_text('{"head": 1}\n{"layer": 0}\n{"layer": 1}\n{"lay')
    found = inspect(str(folder))
    assert (found.kind, found.whole) == ("unfinished output", False)
    assert found.state == "2 layers are finished; go on with --resume"
    with pytest.raises(TsconvertError) as caught:
        inspect(str(tmp_path / "o"))
    assert str(caught.value) == (
        f"{tmp_path / 'o'}: is not finished, {folder} is what there is; inspect that or go on with --resume"
    )


def test_predictors(sparse: Path, tmp_path: Path):
    how = Training(steps=5, batch_tokens=128)
    config = PredictorConfig(model=str(sparse), out=tmp_path / "p", tokens=1024, context=128, rank=32, training=how)
    report = train_predictors(config)
    found = inspect(str(tmp_path / "p"))
    assert found.kind == "predictors"
    assert found.facts["for model"] == open_checkpoint(sparse).fingerprint
    assert found.facts["FFNs"] == "2 of 2 have a predictor"
    row = rows_of(found, "predictors")["1"]
    assert row[2] == 32
    assert row[4:] == [
        report.ffns[1].density,
        report.ffns[1].predicted_density,
        report.ffns[1].recall,
        report.ffns[1].energy,
    ]


def test_a_profile(sparse: Path, tmp_path: Path):
    made = profile(ProfileConfig(model=str(sparse), out=tmp_path / "p.safetensors", tokens=1024, context=128))
    found = inspect(str(tmp_path / "p.safetensors"))
    assert (found.kind, found.whole, found.state) == ("profile", True, "every FFN was seen")
    assert found.facts["density"] == f"{made.density:.3f}, mean over layers"
    assert rows_of(found, "shares of the neurons")["1"][1] == made.layers[1].density


def test_stored_logits(dense: Path, tmp_path: Path):
    file = tmp_path / "l.safetensors"
    evaluate(EvalConfig(model=str(dense), context=64, chunks=2, save_logits=file, top=8))
    found = inspect(str(file))
    assert found.kind == "reference logits"
    assert found.facts["kept"] == "the 8 likeliest tokens of each of 62 predictions"
    assert found.facts["fingerprint"] == open_checkpoint(dense).fingerprint


def test_an_importance_matrix(sparse: Path, tmp_path: Path):
    imatrix(ImatrixConfig(model=str(sparse), out=tmp_path / "i.gguf", tokens=1024, context=128))
    found = inspect(str(tmp_path / "i.gguf"))
    assert (found.kind, found.whole) == ("importance matrix", True)
    assert found.facts["tokens"] == "1,024 in sequences of 128"
    assert rows_of(found, "entries")["blk.1.ffn_gate.weight"][1:4] == [1, 64, 1024]


def test_a_gguf_file(sparse: Path, tmp_path: Path):
    file = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=sparse, out=file, type_name="Q8_0"))
    found = inspect(str(file), tensors=True)
    assert found.kind == "GGUF file, turbosparse"
    assert found.whole
    assert found.facts["modes"] == "dense, exact"
    parts = rows_of(found, "parts")
    assert parts["FFN down"][1:4] == [2, 2 * 128 * 64, "Q8_0"]
    assert ("output_norm.weight", "F32", [64], 256) in found.tensors


def test_a_gguf_file_that_lacks_a_tensor(dense: Path, tmp_path: Path):
    file = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=dense, out=file, type_name="F32"))
    file.write_bytes(file.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    assert "blk.1.ffn_xx.weight" in GgufFile(file).tensors
    found = inspect(str(file))
    assert not found.whole
    assert "blk.1.ffn_up.weight" in found.state


def test_an_architecture_of_others(dense: Path, tmp_path: Path):
    file = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=dense, out=file, type_name="F32"))
    file.write_bytes(file.read_bytes().replace(b"llama", b"xlama"))
    found = inspect(str(file))
    assert found.whole
    assert found.state.endswith("its architecture is not known here")


def test_what_it_is_not(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(TsconvertError, match=r"x\.gguf"):
        inspect(str(tmp_path / "x.gguf"))
    with pytest.raises(TsconvertError, match="no such folder"):
        inspect(str(tmp_path / "nowhere"))
