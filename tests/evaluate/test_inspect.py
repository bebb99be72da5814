from pathlib import Path

import pytest

from tsconvert.convert.errors import TsconvertError
from tsconvert.convert.relufy import RelufyConfig, relufy
from tsconvert.evaluate.inspect import inspect


def test_a_checkpoint(dense: Path):
    found = inspect(str(dense), tensors=True)
    assert found.kind == "mistral checkpoint"
    assert found.facts["layers"] == 2
    assert ("model.norm.weight", "F32", [64], 256) in found.tensors
    assert "128" in str(found)


def test_a_sparse_checkpoint_says_where_it_came_from(dense: Path, tmp_path: Path):
    report = relufy(RelufyConfig(model=str(dense), out=tmp_path / "s", recover="none", tokens=1024, context=128))
    facts = inspect(str(tmp_path / "s")).facts
    assert facts["activation"] == "drelu"
    assert facts["made from"] == report.source_fingerprint
    assert len(facts["density"].split()) == 2
    (tmp_path / "s" / "tsconvert.json").write_text("{}")
    with pytest.raises(TsconvertError, match=r"tsconvert\.json: not what relufy writes; remove it"):
        inspect(str(tmp_path / "s"))


def test_what_it_is_not(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(TsconvertError, match=r"x\.gguf"):
        inspect(str(tmp_path / "x.gguf"))
    with pytest.raises(TsconvertError, match="no such folder"):
        inspect(str(tmp_path / "nowhere"))
