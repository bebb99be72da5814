"""`export-gguf --attention-share`: the output matrices by their inputs, and what verify says of such files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tsconvert import cli
from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.verify.compare import VerifyConfig, verify
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.model.tensor_names import Place
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.profile import profile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.gguf.tensor_plan import TensorPlan
from tsconvert.quant.imatrix.collect import imatrix
from tsconvert.quant.imatrix.config import ImatrixConfig
from tsconvert.quant.imatrix.file import load_imatrix
from tsconvert.quant.sizing.reading import read_shares
from tsconvert.quant.types.encoding import quantize

Make = Callable[..., Path]


def exported(model: Path, out: Path, **options) -> GgufFile:
    export_unverified(ExportConfig(model=str(model), out=out, **options))
    return GgufFile(out)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_the_matrices_are_the_checkpoints_transposed(make_sparse: Make, family: str, tmp_path: Path):
    model = make_sparse(family)
    counted = tmp_path / "profile.safetensors"  # neurons in another order: it is none of these inputs'
    profile(ProfileConfig(model=str(model), out=counted, tokens=512, context=64))
    plain = exported(model, tmp_path / "plain.gguf", type_name="F32", profile=counted)
    file = exported(model, tmp_path / "m.gguf", type_name="F32", profile=counted, attention_share=0.5)
    checkpoint = open_checkpoint(str(model))
    for layer in range(checkpoint.spec.layers):
        out_DA = checkpoint.array(Place("attn_output", layer))
        np.testing.assert_array_equal(file.tensors[f"blk.{layer}.attn_output_t.weight"].to_float32(), out_DA.T)
    assert {name.replace("attn_output_t", "attn_output") for name in file.tensors} == set(plain.tensors)
    for name in set(plain.tensors) & set(file.tensors):
        assert file.tensors[name].raw.tobytes() == plain.tensors[name].raw.tobytes()
    keys = plain.metadata | file.metadata  # by their texts: NaN is not NaN
    changed = {key for key in keys if repr(plain.metadata.get(key)) != repr(file.metadata.get(key))}
    assert changed == {f"turbosparse.{name}" for name in ("attention.output_share", "features", "format_version")}
    assert file.metadata["turbosparse.attention.output_share"] == 0.5
    verify(VerifyConfig(model=str(model), file=tmp_path / "m.gguf")).require()


def test_a_matrix_that_was_not_transposed_is_found(drelu: Path, tmp_path: Path):
    file = exported(drelu, tmp_path / "m.gguf", attention_share=0.5)
    tensor = file.tensors["blk.1.attn_output_t.weight"]
    turned = np.ascontiguousarray(tensor.to_float32().T).reshape(tensor.shape)
    with (tmp_path / "m.gguf").open("r+b") as stream:
        stream.seek(tensor.offset)
        stream.write(quantize(turned, tensor.type_name).tobytes())
    problems = {
        failure.what: failure.problem
        for failure in verify(VerifyConfig(model=str(drelu), file=tmp_path / "m.gguf")).failures
    }
    assert problems["blk.1.attn_output_t.weight"].endswith(
        "; the tensor holds the matrix as Hugging Face has it, not transposed"
    )


def test_mixes_see_an_output_matrix(drelu: Path, tmp_path: Path):
    """Q4_K_M's rules, and patterns, as for the matrix as it was."""
    types = (("attn_output", "Q5_0"),)
    file = exported(drelu, tmp_path / "m.gguf", type_name="Q8_0", attention_share=0.5, tensor_types=types)
    assert {each.type_name for name, each in file.tensors.items() if "attn_output_t" in name} == {"Q5_0"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_share": 0.0}, "attention share is 0: it must be above 0 and at most 1"),
        ({"attention_share": 1.25}, "attention share is 1.25: it must be above 0 and at most 1"),
        (
            {"attention_share": 0.5, "target": "powerinfer"},
            (
                "--attention-share is for sparse models in files for our own runner: the model is drelu and the target"
                " powerinfer; leave it out"
            ),
        ),
    ],
)
def test_refusals(drelu: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(TsconvertError) as caught:
        exported(drelu, tmp_path / "m.gguf", **options)
    assert str(caught.value) == message
    assert not (tmp_path / "m.gguf").exists()


def test_a_dense_model_has_no_predicted_mode(make_checkpoint: Make, tmp_path: Path):
    with pytest.raises(TsconvertError, match=r"^--attention-share is for sparse models .* the model is swiglu and"):
        exported(make_checkpoint("mistral"), tmp_path / "m.gguf", attention_share=0.5, target="sparse")


def test_its_modes_are_told(drelu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    exported(drelu, tmp_path / "m.gguf", attention_share=0.5)
    cli.main(["inspect", str(tmp_path / "m.gguf"), "--json"])
    assert json.loads(capsys.readouterr().out)["facts"]["modes"] == "dense, exact, predicted"


def test_types_by_a_size_and_types_that_need_importances(drelu: Path, tmp_path: Path):
    file = exported(drelu, tmp_path / "m.gguf", attention_share=0.5, target_bits=5.0)
    assert file.tensors["blk.0.attn_output_t.weight"].type_name != "F32"
    assert load_imatrix(tmp_path / "m.imatrix.gguf").slopes["blk.0.attn_output_t.weight"].shape == (1, 64)


def test_types_that_need_importances_have_none_for_it(make_sparse: Make, tmp_path: Path):
    model = make_sparse(hidden_size=256, intermediate_size=256)
    imatrix(ImatrixConfig(model=str(model), out=tmp_path / "i.gguf", tokens=256, context=128))
    with pytest.raises(TsconvertError) as caught:
        exported(model, tmp_path / "m.gguf", type_name="IQ2_XXS", attention_share=0.5, imatrix=tmp_path / "i.gguf")
    assert str(caught.value).startswith(f"{tmp_path / 'i.gguf'}: holds nothing on blk.0.attn_output_t.weight, and ")
    assert str(caught.value).endswith(" needs importances; leave --attention-share out")


def test_a_size_a_token_counts_the_rows_that_are_read():
    tensors = [
        TensorPlan(name=f"blk.0.{name}.weight", shape=(64, 64), type_name="Q8_0", source=list)
        for name in ("attn_q", "attn_output_t", "ffn_gate", "ffn_up")
    ]
    shares = read_shares(tensors, sparse=True, density=0.1, experts_read=1, attention_share=0.5)
    assert list(shares.values()) == [1, 0.5, 1, 0.1]
