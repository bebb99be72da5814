"""The importance matrix: what it sums, what it says of experts, and llama.cpp's form."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from tsconvert.cli import main
from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.imatrix.collect import ImatrixConfig, imatrix
from tsconvert.quant.imatrix.file import Entry, ImportanceMatrix, load_imatrix, save_imatrix
from tsconvert.text.packing import calibration_rows

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def wide(make_checkpoint: Make) -> Path:
    return make_checkpoint("mistral", hidden_size=256, intermediate_size=512, num_attention_heads=8)


@pytest.fixture(scope="module")
def matrix(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imatrix") / "i.gguf"
    imatrix(ImatrixConfig(model=str(wide), out=out, tokens=512, context=128))
    return out


def test_the_sums_are_those_of_transformers_own_modules(wide: Path, matrix: Path):
    rows = calibration_rows(open_checkpoint(wide), (), tokens=512, context=128, seed=0)
    model = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32, attn_implementation="eager").eval()
    sums: dict[str, np.ndarray] = {}
    for i, layer in enumerate(model.model.layers):
        modules = {
            "attn_q": layer.self_attn.q_proj, "attn_k": layer.self_attn.k_proj, "attn_v": layer.self_attn.v_proj,
            "attn_output": layer.self_attn.o_proj, "ffn_gate": layer.mlp.gate_proj, "ffn_up": layer.mlp.up_proj,
            "ffn_down": layer.mlp.down_proj,
        }  # fmt: skip
        for kind, module in modules.items():
            name = f"blk.{i}.{kind}.weight"

            def hook(_module: object, inputs: tuple, name: str = name) -> None:
                sums[name] = sums.get(name, 0) + inputs[0].double().square().sum((0, 1)).numpy()

            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(torch.from_numpy(rows))
    found = load_imatrix(matrix)
    assert found.entries.keys() == sums.keys()
    for name, expected in sums.items():
        np.testing.assert_allclose(found.entries[name].sums_EC[0], expected, rtol=2e-4)
        assert found.entries[name].counts_E.tolist() == [rows.size]
    assert (found.chunks, found.chunk_tokens) == rows.shape
    assert found.model_fingerprint == open_checkpoint(wide).fingerprint


def test_the_file_has_llama_cpps_form(matrix: Path):
    """By gguf-py's reader: names, types, dimensions and keys of llama-imatrix."""
    reader = gguf.GGUFReader(matrix)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.1.ffn_down.weight.in_sum2"].shape.tolist() == [512, 1]
    assert tensors["blk.1.ffn_down.weight.counts"].shape.tolist() == [1, 1]
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    kinds = {name: [kind.name for kind in field.types] for name, field in reader.fields.items()}
    assert kinds["general.type"] == ["STRING"]
    assert kinds["imatrix.datasets"] == ["ARRAY", "STRING"]
    assert kinds["imatrix.chunk_count"] == kinds["imatrix.chunk_size"] == ["UINT32"]


def test_experts_are_counted_apart_and_the_missed_are_named(moe: Path, tmp_path: Path):
    report = imatrix(ImatrixConfig(model=str(moe), out=tmp_path / "i.gguf", tokens=256, context=128))
    entries = load_imatrix(tmp_path / "i.gguf").entries
    entry = entries["blk.0.ffn_gate_exps.weight"]
    assert entry.sums_EC.shape == (4, 64)
    assert entry.counts_E.sum() == 2 * report.tokens  # two experts a token
    assert report.missed_experts == {}
    assert entries["blk.0.attn_q.weight"].counts_E.tolist() == [report.tokens]

    counts_E = entry.counts_E.copy()
    counts_E[2] = 0
    partial = dict(entries) | {
        f"blk.0.ffn_{role}_exps.weight": Entry(entries[f"blk.0.ffn_{role}_exps.weight"].sums_EC, counts_E)
        for role in ("gate", "up", "down")
    }
    save_imatrix(ImportanceMatrix(entries=partial), tmp_path / "partial.gguf")
    importance_EC = load_imatrix(tmp_path / "partial.gguf").entries["blk.0.ffn_up_exps.weight"].importance()
    assert (importance_EC[2] == 1).all()
    exported = export_unverified(
        ExportConfig(model=moe, out=tmp_path / "m.gguf", type_name="Q4_0", imatrix=tmp_path / "partial.gguf")
    )
    assert (
        "blk.0: no token of the importance matrix reached expert 2 of 4; their columns count alike, give it more text"
        in exported.notes
    )


def test_a_sparse_models_down_rows(drelu: Path, tmp_path: Path):
    """ffn_down has what fires, per neuron; ffn_down_t, whose rows are neurons, a weight per place of the embedding."""
    imatrix(ImatrixConfig(model=str(drelu), out=tmp_path / "i.gguf", tokens=256, context=128))
    entries = load_imatrix(tmp_path / "i.gguf").entries
    fired_F = entries["blk.0.ffn_down.weight"].importance()[0]
    assert fired_F.shape == (1024,)
    assert (fired_F >= 0).all()
    assert fired_F.any()
    first_D, last_D = (entries[f"blk.{layer}.ffn_down_t.weight"].importance()[0] for layer in (0, 1))
    assert first_D.shape == last_D.shape == (64,)
    assert first_D.min() > 0
    checkpoint = open_checkpoint(drelu)
    norm_D, head_VD = (checkpoint.array(p) for p in checkpoint.places if p.role in ("output_norm", "output"))
    expected_D = np.square(norm_D) * np.square(head_VD.astype(np.float64)).sum(0)
    np.testing.assert_allclose(last_D, expected_D / expected_D.mean(), rtol=1e-4)
    assert not np.allclose(first_D, last_D, rtol=0.01)  # the layers between weigh too
    given = export_unverified(
        ExportConfig(model=drelu, out=tmp_path / "a.gguf", type_name="Q4_1", imatrix=tmp_path / "i.gguf")
    )
    export_unverified(ExportConfig(model=drelu, out=tmp_path / "b.gguf", type_name="Q4_1"))
    name = "blk.0.ffn_down_t.weight"
    weighted, plain = (GgufFile(tmp_path / f).tensors[name] for f in ("a.gguf", "b.gguf"))
    assert not np.array_equal(weighted.raw, plain.raw)
    source_FD = next(checkpoint.array(p).T for p in checkpoint.places if (p.role, p.layer) == ("ffn_down", 0))
    order_F = GgufFile(given.out).tensors.get("blk.0.ffn_order")
    assert order_F is None
    errors = [(np.square(t.to_float32() - source_FD) * first_D).sum() for t in (weighted, plain)]
    assert errors[0] < errors[1]


def test_a_matrix_of_another_model_is_refused(matrix: Path, dense: Path, moe: Path, tmp_path: Path):
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf", type_name="Q4_0", imatrix=matrix))
    assert str(caught.value) == f"{matrix}: was made from another model; run `tsconvert imatrix` on this one"
    anonymous = tmp_path / "anonymous.gguf"
    save_imatrix(ImportanceMatrix(entries=load_imatrix(matrix).entries), anonymous)
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf", type_name="Q4_0", imatrix=anonymous))
    assert str(caught.value) == (
        f"{anonymous}: blk.0.attn_q.weight has importances [1, 256] where the model needs [1, 64]; make the matrix from"
        " this model"
    )


def test_what_is_missing_and_what_is_no_matrix(wide: Path, matrix: Path, tmp_path: Path):
    entries = dict(load_imatrix(matrix).entries)
    del entries["blk.1.ffn_up.weight"]
    less = tmp_path / "less.gguf"
    save_imatrix(ImportanceMatrix(entries=entries), less)
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=wide, out=tmp_path / "m.gguf", type_name="IQ2_XS", imatrix=less))
    assert str(caught.value) == (
        f"{less}: holds nothing on blk.1.ffn_up.weight, and IQ2_XS needs importances; make the matrix from this model"
    )
    report = export_unverified(ExportConfig(model=wide, out=tmp_path / "m.gguf", type_name="Q4_K_M", imatrix=less))
    assert f"{less} holds nothing on blk.1.ffn_up.weight: all their columns count alike" in report.notes
    keys = GgufFile(tmp_path / "m.gguf").metadata
    assert (keys["quantize.imatrix.file"], keys["quantize.imatrix.entries_count"]) == (str(less), 13)
    with pytest.raises(TsconvertError) as caught:
        load_imatrix(tmp_path / "m.gguf")
    assert str(caught.value) == (f"{tmp_path / 'm.gguf'}: is no importance matrix; make one with `tsconvert imatrix`")


def test_the_command(tmp_path: Path):
    out = tmp_path / "i.gguf"
    arguments = ["imatrix", "tiny-mistral", "--out", str(out), "--tokens", "512", "--context", "128", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["entries"] == 21
    again = CliRunner().invoke(main, arguments)
    assert (again.exit_code, again.stderr) == (
        2,
        f"error: {out}: exists already; choose another --out or remove it first\n",
    )
