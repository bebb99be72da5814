"""Predictors in a second file: the runner finds them, and refuses those of another model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.verify.compare import VerifyConfig, verify
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

Make = Callable[..., Path]


def test_predictors_in_a_file_of_their_own(drelu: Path, make_predictors: Make, tmp_path: Path):
    predictors, prompt = make_predictors(drelu, threshold=-0.5), [1, 300, 500, 7]
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    export_unverified(ExportConfig(model=drelu, out=one, predictors=predictors))
    report = export_unverified(ExportConfig(model=drelu, out=two, predictors=predictors, separate_predictors=True))
    apart = tmp_path / "two.gguf.predictors.gguf"
    assert report.files == [str(two), str(apart)]
    inside = {name for name in GgufFile(one).tensors if ".fc" in name}
    assert set(GgufFile(two).tensors) == set(GgufFile(one).tensors) - inside
    assert set(GgufFile(apart).tensors) == inside
    assert GgufFile(two).metadata["turbosparse.predictor.file"] == apart.name
    logits = []
    for path in (one, two):
        with load(path, mode="predicted", threads=1) as model:
            logits.append(model.logits(prompt))
    assert np.array_equal(logits[0], logits[1])
    verify(VerifyConfig(model=drelu, file=two, predictors=predictors)).require()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(two, other)
    with pytest.raises(TsconvertError) as caught:
        load(other / "two.gguf", mode="predicted")
    assert str(caught.value) == (f"{other / 'two.gguf'}: the file's predictors are in {apart.name}; put that beside it")


def test_predictors_of_another_model_beside_a_file(
    drelu: Path, make_sparse: Make, make_predictors: Make, tmp_path: Path
):
    predictors = make_predictors(drelu)
    out = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=drelu, out=out, predictors=predictors, separate_predictors=True))
    other = make_sparse(seed=8)
    shutil.rmtree(predictors)
    again = ExportConfig(
        model=other, out=tmp_path / "o.gguf", predictors=make_predictors(other), separate_predictors=True
    )
    export_unverified(again)
    shutil.copy(tmp_path / "o.gguf.predictors.gguf", tmp_path / "m.gguf.predictors.gguf")
    with pytest.raises(TsconvertError) as caught:
        load(out)
    assert str(caught.value) == f"{out}.predictors.gguf: holds no predictors of {out}; export both again"


def test_separate_predictors_without_any(drelu: Path, tmp_path: Path):
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=drelu, out=tmp_path / "m.gguf", separate_predictors=True))
    assert str(caught.value) == (
        "--separate-predictors: there are no predictors that could go into a file of their own; give --predictors and"
        " --target sparse"
    )
