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


def of_transformers(folder: Path, trust: bool = False, dtype: torch.dtype = torch.float32) -> np.ndarray:
    options = {"attn_implementation": "eager"} if "gemma2" in str(folder) else {}  # transformers 5.0 takes sdpa
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=dtype, **options).eval()
    model.config._experts_implementation = "eager"  # the others do not multiply float64
    with torch.no_grad():
        return model(input_ids=torch.tensor([ROW_S])).logits[0].numpy()


def distance(ours_TV: np.ndarray, folder: Path, trust: bool = False) -> float:
    """From transformers in float64; in units of 1e-5, or of twice its own float32's distance where that is more."""
    exact_TV = of_transformers(folder, trust, torch.float64)
    own = spread(of_transformers(folder, trust), exact_TV)
    return spread(ours_TV, exact_TV) / max(1e-5, 2 * own)


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
    assert distance(of_runner(path, mode="dense"), folder) <= 1


@every_family
@pytest.mark.parametrize("activation", ["drelu", "reglu"])
def test_sparse(make_family: MakeFamily, tmp_path: Path, family: Family, activation: str):
    folder, path, model = tmp_path / "sparse", tmp_path / "m.gguf", str(make_family(family.name))
    relufy(RelufyConfig(model=model, out=folder, activation=activation, recover="none", tokens=1024, context=64))
    export_unverified(ExportConfig(model=folder, out=path, type_name="F32"))
    for mode in ("dense", "exact"):
        assert distance(of_runner(path, mode=mode), folder, trust=True) <= 1, mode
