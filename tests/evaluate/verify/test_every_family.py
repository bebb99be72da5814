"""verify agrees with the files of every family, tensor by tensor and in the logits."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.verify.compare import verify
from tsconvert.evaluate.verify.config import VerifyConfig
from tsconvert.model.families import FAMILIES
from tsconvert.quant.export import ExportConfig, export_unverified

Make = Callable[..., Path]


@pytest.mark.filterwarnings("ignore")
# for qwen2 transformers takes its own tokenizer class, whatever tokenizer the folder has; qwen3 is alike
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen2"])
def test_files_of_every_family(name: str, make_family: Make, tmp_path: Path):
    folder, sparse = make_family(name), tmp_path / "sparse"
    relufy(RelufyConfig(model=str(folder), out=sparse, recover="none", align=False))
    for model, target, type_name in ((folder, "llama.cpp", "Q8_0"), (sparse, "sparse", "F16")):
        file = tmp_path / f"{target}.gguf"
        export_unverified(ExportConfig(model=str(model), out=file, target=target, type_name=type_name))
        report = verify(VerifyConfig(model=str(model), file=file))
        assert report.passed, report.failures
        assert report.logits is not None
        assert report.logits.prompts
