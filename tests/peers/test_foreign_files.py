"""`llama` files by others: computed as llama.cpp computes them, or refused by the name of the key or tensor."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rewritten_gguf import rewritten

from tsconvert.common.errors import TsconvertError
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

pytestmark = pytest.mark.peer
Make = Callable[..., Path]
IDS = np.random.default_rng(0).integers(300, 4000, 120).tolist()
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 24}
FREQS = {"rope_freqs.weight": np.linspace(1, 8, 8).astype(np.float32)}


def changed(path: Path, keys: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """The file with other keys of its architecture, and more tensors."""
    keys = {f"llama.{name}": value for name, value in keys.items()}
    return rewritten(path, path.with_name("changed.gguf"), keys, tensors)


@pytest.fixture(scope="module")
def plain(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "plain.gguf"
            export_unverified(ExportConfig(model=make_checkpoint(family, seed=8), out=made[family], type_name="F32"))
        return made[family]

    return of


def ours(path: Path) -> np.ndarray:
    with load(path, cache_type="F32") as model:
        logits_V = model.feed(IDS).astype(np.float64)
    return logits_V - logits_V.max() - np.log(np.exp(logits_V - logits_V.max()).sum())


@pytest.mark.parametrize(
    ("keys", "tensors"),
    [
        ({"rope.scaling.factor": 4.0}, {}),  # llama.cpp's default type is linear
        ({"rope.scale_linear": 4.0}, {}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.7}, {}),
        (YARN, {}),
        (YARN | {"rope.scaling.attn_factor": 1.7}, {}),
        (YARN | {"rope.scaling.yarn_beta_fast": 1.5, "rope.scaling.yarn_beta_slow": 0.3}, {}),
        ({}, FREQS),
        ({"rope.scaling.factor": 4.0}, FREQS),
        (YARN, FREQS),
        ({"attention.sliding_window": 16}, {}),
        ({"attention.scale": 0.05, "logit_scale": 0.3, "embedding_scale": 5.0, "final_logit_softcapping": 2.0}, {}),
    ],
    ids=lambda value: "+".join(value) or "-",
)
def test_keys_mean_what_llama_cpp_makes_of_them(
    plain: Callable[[str], Path], llama_cpp: Callable, tmp_path: Path, keys: dict, tensors: dict
):
    path = changed(_copy(plain("llama"), tmp_path), keys, tensors)
    found = ours(path)
    for token, logprob in llama_cpp(path).logprobs(IDS).items():
        assert found[token] == pytest.approx(logprob, abs=2e-3)


def test_the_window_that_is_not_heeded_is_said(plain: Callable[[str], Path], tmp_path: Path, capsys):
    path = changed(_copy(plain("llama"), tmp_path), {"attention.sliding_window": 16}, {})
    assert (ours(path) == ours(plain("llama"))).all()
    assert capsys.readouterr().err == (
        f"{path}: attention.sliding_window is 16; as in llama.cpp, which does not read it in llama files, every token"
        " sees all before it\n"
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("attn_q.bias", 64), ("attn_k.bias", 32), ("attn_v.bias", 32), ("attn_output.bias", 64), ("ffn_gate.bias", 128),
        ("ffn_up.bias", 128), ("ffn_down.bias", 64), ("attn_q.scale", 1),
    ],
)  # fmt: skip
def test_tensors_that_llama_cpp_computes_with(
    plain: Callable[[str], Path], llama_cpp: Callable, tmp_path: Path, name: str, size: int
):
    rng = np.random.default_rng(5)
    extra = {f"blk.{layer}.{name}": rng.normal(size=size).astype(np.float32) for layer in range(2)}
    path = changed(_copy(plain("llama"), tmp_path), {}, extra)
    without, peer = ours(plain("llama")), llama_cpp(path).logprobs(IDS)
    assert max(abs(without[token] - logprob) for token, logprob in peer.items()) > 0.05  # it matters
    try:
        found = ours(path)
    except TsconvertError as error:
        assert str(error) == (  # noqa: PT017
            f"{path}: tensor blk.0.{name} and 1 more, which the runner does not compute; run the file with the engine"
            " that it was made for"
        )
    else:
        for token, logprob in peer.items():
            assert found[token] == pytest.approx(logprob, abs=2e-3)


def _copy(path: Path, folder: Path) -> Path:
    out = folder / path.name
    out.write_bytes(path.read_bytes())
    return out
