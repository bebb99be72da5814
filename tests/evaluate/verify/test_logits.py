"""Logits against transformers' own model: misreadings, planted in the reader or in the file, are each found.

A misreading of the checkpoint is in the exporter and in every comparison with its source alike; only transformers,
which reads for itself, tells.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.verify import expected_tensors, logits
from tsconvert.evaluate.verify.compare import VerifyConfig, verify
from tsconvert.evaluate.verify.logits import LogitsResult, compare_logits
from tsconvert.evaluate.verify.metadata import dialect_of
from tsconvert.model import find_tensors, tensor_names
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.families import FAMILIES
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.targets import plan
from tsconvert.quant.targets.neuron_order import read_orders
from tsconvert.text.tokenizer import load_tokenizer

Make = Callable[..., Path]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "linear": ("llama", {"rope_parameters": LINEAR}),
    "yarn": ("mistral", {"rope_parameters": YARN}),
    "windowed": ("mistral", {"sliding_window": 16}),
    "experts": ("mixtral", {}),
}
WAYS = pytest.mark.parametrize("whole", [True, False], ids=["whole", "layers"])


@pytest.fixture(scope="module")
def model(make_checkpoint: Make, make_sparse: Make) -> Callable[..., Path]:
    made: dict[tuple[str, bool], Path] = {}

    def of(name: str, *, sparse: bool = False) -> Path:
        if (name, sparse) not in made:
            family, fields = MODELS[name]
            made[name, sparse] = (make_sparse if sparse else make_checkpoint)(family, seed=6, **fields)
        return made[name, sparse]

    return of


def compared(folder: Path, out: Path, *, whole: bool, type_name: str = "F32", target: str = "sparse") -> LogitsResult:
    """Exported and compared, in memory for all of the model or for a layer at a time."""
    if not out.exists():
        export_unverified(ExportConfig(model=folder, out=out, type_name=type_name, target=target))
    checkpoint, file = open_checkpoint(folder), GgufFile(out)
    orders = read_orders(file, checkpoint.spec)
    free_bytes = 1 << 40 if whole else 8 * checkpoint.spec.parameters
    hf = load_tokenizer(folder)
    result = compare_logits(file, checkpoint, orders, dialect_of(file), hf, free_bytes)
    assert not result.skipped
    return result


@WAYS
@pytest.mark.parametrize(
    ("name", "sparse", "type_name", "trials"),
    [
        ("llama", False, "F32", {"text", "positions to 253"}),
        ("llama", True, "Q8_0", {"text", "positions to 253"}),
        ("llama3", False, "F16", {"text", "positions to 253"}),
        ("linear", True, "F32", {"text", "positions to 253"}),
        ("yarn", True, "Q4_0", {"text", "positions to 253"}),
        ("windowed", False, "F32", {"text", "positions to 253", "a window of 8"}),
        ("windowed", True, "Q8_0", {"text", "positions to 253", "a window of 8"}),
        ("experts", False, "F32", {"text", "positions to 253"}),
        ("experts", True, "F32", {"text", "positions to 253"}),
    ],
)
def test_a_right_file_passes(
    model: Callable, tmp_path: Path, name: str, sparse: bool, type_name: str, trials: set[str], whole: bool
):
    found = compared(model(name, sparse=sparse), tmp_path / "m.gguf", whole=whole, type_name=type_name)
    assert not found.problem
    assert found.whole == whole
    assert set(found.arithmetic) == trials
    exact = whole or type_name in ("F32", "F16")
    assert max(found.arithmetic.values()) < (1e-4 if exact else 0.2)
    assert (found.difference < 1e-5) == (type_name in ("F32", "F16"))


def test_a_capped_context_is_within_the_window(model: Callable, tmp_path: Path):
    found = compared(model("windowed"), tmp_path / "m.gguf", whole=True, target="llama.cpp")
    assert not found.problem
    assert set(found.arithmetic) == {"text"}


def reads(monkeypatch: pytest.MonkeyPatch, **wrong: Any) -> None:
    """From here on the reader of config.json takes something else from it."""
    right = find_tensors.spec_of
    monkeypatch.setattr(
        find_tensors, "spec_of", lambda config, where: dataclasses.replace(right(config, where), **wrong)
    )


SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MISREAD: list[tuple[str, bool, dict[str, Any], str]] = [
    ("llama", False, {"rope_theta": 2e4}, "differ from transformers' by "),
    ("llama", False, {"norm_eps": 1e-2}, "differ from transformers' by "),
    ("llama", False, {"sliding_window": 16}, "the runner's sliding window is 16 and transformers' None"),
    ("llama", True, {"activation": "reglu"}, "differ from transformers' by "),
    ("llama", True, {"thresholds": (0.3, 0.3)}, "differ from transformers' by "),
    ("llama3", False, {"rope_scaling": None}, "differ from transformers' by "),
    ("llama3", False, {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}, "differ from "),
    ("llama3", False, {"rope_scaling": LLAMA3 | {"high_freq_factor": 8.0}}, "differ from transformers' by "),
    ("linear", False, {"rope_scaling": LINEAR | {"factor": 2.0}}, "differ from transformers' by "),
    ("yarn", False, {"rope_scaling": YARN | {"original_max_position_embeddings": 64}}, "differ from "),
    ("yarn", False, {"rope_scaling": YARN | {"attention_factor": 1.0}}, "differ from transformers' by "),
    ("yarn", False, {"rope_scaling": YARN | {"beta_slow": 2.0}}, "differ from transformers' by "),
    ("windowed", False, {"sliding_window": None}, "the runner's sliding window is None and transformers' 16"),
    ("windowed", True, {"sliding_window": 17}, "the runner's sliding window is 17 and transformers' 16"),
    ("experts", False, {"experts_per_token": 1}, "differ from transformers' by "),
]


@WAYS
@pytest.mark.parametrize(("name", "sparse", "wrong", "problem"), MISREAD)
def test_a_config_that_is_misread(
    model: Callable, tmp_path: Path, monkeypatch, name: str, sparse: bool, wrong: dict, problem: str, whole: bool
):
    reads(monkeypatch, **wrong)
    assert problem in compared(model(name, sparse=sparse), tmp_path / "m.gguf", whole=whole).problem


@pytest.mark.parametrize("wrong", [{"rope_theta": 1.05e4}, {"norm_eps": 1e-3}], ids=str)
def test_what_rounding_would_hide_is_seen_on_the_decoded_weights(
    model: Callable, tmp_path: Path, monkeypatch, wrong: dict
):
    reads(monkeypatch, **wrong)
    found = compared(model("llama"), tmp_path / "m.gguf", whole=True, type_name="Q4_0")
    assert found.difference < 0.25  # no more than a right file of 30 layers
    assert "differ from transformers' by " in found.problem


@pytest.fixture(scope="module")
def thresholded(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("thresholded") / "model"
    how = LocalRecovery(target_sparsity=0.8, up_passes=0.8)
    model = str(make_checkpoint("llama", seed=7))
    relufy(RelufyConfig(model=model, out=out, activation="tswiglu", recover="none", training=how))
    return out


@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_neurons_that_cross_their_thresholds_by_a_last_digit_are_no_fault(
    thresholded: Path, tmp_path: Path, monkeypatch, type_name: str
):
    spec = open_checkpoint(thresholded).spec
    reads(monkeypatch, thresholds=tuple(1.0005 * each for each in spec.thresholds))
    found = compared(thresholded, tmp_path / "m.gguf", whole=True, type_name=type_name)
    assert not found.problem
    assert found.arithmetic["text"] < 1e-5
    assert 1e-3 < found.arithmetic["text, with its thresholds"] < 0.03


@pytest.mark.parametrize(("crossed", "problem"), [(6, ""), (0, "(text, with its thresholds)")])
def test_behind_a_crossing_all_may_differ_but_something_comes_before_it(
    thresholded: Path, tmp_path: Path, monkeypatch, crossed: int, problem: str
):
    run = logits._run

    def crosses(source: Any, rows_NS: Any) -> Any:
        found_NSV = run(source, rows_NS)
        if source.spec.thresholds:
            found_NSV[:, crossed:] = run(logits._all_fire(source), rows_NS)[:, crossed:]
        return found_NSV

    monkeypatch.setattr(logits, "_run", crosses)
    monkeypatch.setattr(logits, "_MANY_NEURONS", 1)
    assert problem in (found := compared(thresholded, tmp_path / "m.gguf", whole=True).problem)
    assert bool(problem) == bool(found)


@WAYS
@pytest.mark.parametrize("wrong", ["thresholds", "up_thresholds"])
def test_other_thresholds_are_found(thresholded: Path, tmp_path: Path, monkeypatch, wrong: str, whole: bool):
    spec = open_checkpoint(thresholded).spec
    reads(monkeypatch, **{wrong: tuple(1.5 * each for each in getattr(spec, wrong))})
    found = compared(thresholded, tmp_path / "m.gguf", whole=whole)
    assert "(text, with its thresholds)" in found.problem


@WAYS
def test_gate_and_up_under_each_others_names(model: Callable, tmp_path: Path, monkeypatch, whole: bool):
    llama = FAMILIES["llama"]
    names = dict(llama.tensors)
    names["ffn_gate"], names["ffn_up"] = names["ffn_up"], names["ffn_gate"]
    monkeypatch.setitem(FAMILIES, "llama", dataclasses.replace(llama, tensors=names))
    assert "differ from transformers' by " in compared(model("llama"), tmp_path / "m.gguf", whole=whole).problem


@WAYS
def test_rows_of_queries_in_an_order_that_exporter_and_check_agree_upon(
    model: Callable, tmp_path: Path, monkeypatch, whole: bool
):
    from tsconvert.evaluate.verify import logits

    monkeypatch.setattr(plan, "rope_index", lambda rows, heads, rotated: np.arange(rows))
    for module in (expected_tensors, logits):
        monkeypatch.setattr(module, "rope_order", lambda heads, size, rotated: np.arange(heads * size))
    assert "differ from transformers' by " in compared(model("llama"), tmp_path / "m.gguf", whole=whole).problem


def test_a_head_that_is_dropped(make_checkpoint: Make, tmp_path: Path, monkeypatch):
    """config.json says that it is tied, the file has another one: transformers takes that."""
    folder = make_checkpoint("llama", seed=6)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert not compared(folder, tmp_path / "right.gguf", whole=True).problem
    right = find_tensors._tie

    def dropped(found: Any, where: Path) -> None:
        head = found.infos.pop(tensor_names.Place("output"))
        right(found, where)
        assert head

    monkeypatch.setattr(find_tensors, "_tie", dropped)
    found = compared(folder, tmp_path / "m.gguf", whole=True)
    assert found.problem == "transformers' model has a parameter that the file has nothing for: lm_head.weight"


def test_a_stale_shard_that_is_read(make_checkpoint: Make, tmp_path: Path, monkeypatch):
    folder = Path(shutil.copytree(make_checkpoint("llama", seed=6), tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"] *= 2
    save_file(tensors, folder / "old.safetensors", metadata={"format": "pt"})
    right = find_tensors.shard_files
    monkeypatch.setattr(find_tensors, "shard_files", lambda where: [where / "old.safetensors", *right(where)][:1])
    found = compared(folder, tmp_path / "m.gguf", whole=True)
    assert found.problem == "transformers reads another attn_v of layer 1 from the model than was exported"


def test_a_model_that_transformers_cannot_load(make_checkpoint: Make, tmp_path: Path):
    folder = Path(shutil.copytree(make_checkpoint("llama", seed=6), tmp_path / "m"))
    compared(folder, tmp_path / "m.gguf", whole=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "64"}))
    checkpoint = open_checkpoint(make_checkpoint("llama", seed=7))
    checkpoint.folder = folder
    hf = load_tokenizer(make_checkpoint("llama", seed=7))
    found = compare_logits(GgufFile(tmp_path / "m.gguf"), checkpoint, {}, "llama.cpp", hf)
    assert found.problem.startswith(f"transformers does not load {folder}: ")


def test_the_folders_own_code_is_not_run(make_checkpoint: Make, tmp_path: Path, capsys):
    folder = Path(shutil.copytree(make_checkpoint("llama", seed=6), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    export_unverified(ExportConfig(model=folder, out=tmp_path / "m.gguf"))
    verify(VerifyConfig(model=folder, file=tmp_path / "m.gguf")).require()
    assert not (tmp_path / "ran").exists()
    assert (
        f"{folder / 'config.json'}: auto_map names code of the folder's own, which is not run: the model is read as"
        " transformers' llama\n"
    ) in capsys.readouterr().err
