"""Every family, from its `tiny` config: the runner on exported files against transformers' AutoModel."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.families import FAMILIES
from tsconvert.model.families.family import Family
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

MakeFamily = Callable[..., Path]
ROW_S = torch.randint(3, 256, (96,), generator=torch.Generator().manual_seed(1)).tolist()
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
pytestmark = pytest.mark.filterwarnings("ignore")


def spread(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / theirs.std())


def of_transformers(folder: Path, trust: bool = False) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ROW_S])).logits[0].numpy()


def of_runner(path: Path, **options: object) -> np.ndarray:
    """Logits of a block, of a token at a time, and with another number of threads: all the same."""
    with load(path, cache_type="F32", context=len(ROW_S), threads=2, **options) as model:
        whole_TV = model.logits(ROW_S)
        model.reset()
        first_TV = model.logits(ROW_S[:90])
        rest_TV = [model.feed([token]) for token in ROW_S[90:]]
    assert spread(np.concatenate([first_TV, rest_TV]), whole_TV) < 1e-5
    with load(path, cache_type="F32", context=len(ROW_S), threads=3, **options) as model:
        np.testing.assert_array_equal(model.logits(ROW_S), whole_TV)
    return whole_TV


@every_family
@pytest.mark.parametrize("target", ["sparse", "llama.cpp"])
def test_dense(make_family: MakeFamily, make_windowless: MakeFamily, tmp_path: Path, family: Family, target: str):
    make = make_family if target == "sparse" else make_windowless
    folder, path = make(family.name), tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=folder, out=path, type_name="F32", target=target))
    assert spread(of_runner(path, mode="dense"), of_transformers(folder)) <= 2e-5


@every_family
def test_sparse(make_family: MakeFamily, tmp_path: Path, family: Family):
    folder, path = tmp_path / "sparse", tmp_path / "m.gguf"
    relufy(RelufyConfig(model=str(make_family(family.name)), out=folder, recover="none", tokens=1024, context=64))
    export_unverified(ExportConfig(model=folder, out=path, type_name="F32"))
    theirs = of_transformers(folder, trust=True)
    for mode in ("dense", "exact"):
        assert spread(of_runner(path, mode=mode), theirs) <= 2e-5, mode
