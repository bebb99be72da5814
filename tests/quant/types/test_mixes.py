"""The named mixes against what llama.cpp's library chooses: mixes.json, which tests/peers/test_quantize.py renews."""

import json
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.files.gguf import ggml
from tsconvert.quant.types import mixes
from tsconvert.quant.types.type_choice import TypeChoice

GOLDEN = json.loads(Path(__file__).with_name("mixes.json").read_text())
MIXES = [mix for mix in mixes.MIXES if mix not in mixes.FLOATS]


def names_of(model: dict) -> dict[str, list[int]]:
    """Names and shapes of a model's tensors, in llama.cpp's order."""
    width, neurons, kv = model["width"], model["neurons"], model["width"] // model["heads"] * model["kv_heads"]
    stack, exps = ([model["experts"]], "_exps") if model["experts"] else ([], "")
    found = {} if model["tied"] else {"output.weight": [model["vocab"], width]}
    found |= {"output_norm.weight": [width], "token_embd.weight": [model["vocab"], width]}
    for layer in range(model["layers"]):
        shapes = {
            "attn_k": [kv, width], "attn_norm": [width], "attn_output": [width, width], "attn_q": [width, width],
            "attn_v": [kv, width], f"ffn_down{exps}": [*stack, width, neurons],
            f"ffn_gate{exps}": [*stack, neurons, width], "ffn_norm": [width], f"ffn_up{exps}": [*stack, neurons, width],
        }  # fmt: skip
        if stack:
            shapes["ffn_gate_inp"] = [*stack, width]
        found |= {f"blk.{layer}.{kind}.weight": shape for kind, shape in shapes.items()}
    return found


def chosen(model: dict, mix: str, importance: bool, overrides: tuple = ()) -> dict[str, str]:
    facts = {name: model[name] for name in ("layers", "heads", "kv_heads", "experts", "tied")}
    types = TypeChoice(mix, "F16", overrides, mixes.Model(**facts, importance=importance))
    return {
        name: types.matrix(name, shape[-1]) if mixes.is_quantized(name, len(shape)) else "F32"
        for name, shape in names_of(model).items()
    }


def folded(types: dict[str, str]) -> dict[str, str]:
    """Per kind of tensor the types of the layers in order: `Q6_K*2 Q4_K`."""
    kinds: dict[str, list[list]] = {}
    for name, kind in types.items():
        runs = kinds.setdefault(name.split(".")[-2], [])
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        else:
            runs.append([kind, 1])
    return {
        name: " ".join(kind if count == 1 else f"{kind}*{count}" for kind, count in runs)
        for name, runs in kinds.items()
    }


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_each_tensor_gets_the_type_that_llama_quantize_chooses(name: str):
    model, table = GOLDEN["models"][name], GOLDEN["types"][name]
    assert len(table) == 2 * len(MIXES)
    for mix in MIXES:
        assert folded(chosen(model, mix, True)) == table[f"{mix} imatrix"]["types"], mix
        expected = table[mix]
        if expected["needs_imatrix"]:
            with pytest.raises(TsconvertError, match="which needs an importance matrix"):
                chosen(model, mix, False)
        else:
            assert folded(chosen(model, mix, False)) == expected["types"], mix


def test_overrides_do_not_count_among_the_first_ones():
    """As in llama-quantize: what --tensor-type names takes no part in the mix's counting."""
    model = GOLDEN["models"]["dense"]
    overrides = ((r"blk\.[01]\.attn_v", "Q8_0"), (r"ffn_down", "Q5_0"))
    assert folded(chosen(model, "Q4_K_S", False, overrides)) == GOLDEN["overridden"]["types"]


def test_a_transposed_down_is_a_down():
    model = mixes.Model(layers=16, heads=8, kv_heads=2)
    for kind in ("ffn_down", "ffn_down_t"):
        types = TypeChoice("Q4_K_M", "F16", (), model)
        found = [types.matrix(f"blk.{layer}.{kind}.weight", 512) for layer in range(16)]
        assert found == [GOLDEN_DOWN[layer] for layer in range(16)]


# the first and last eighth, and every third between
GOLDEN_DOWN = ["Q6_K" if layer in (0, 1, 4, 7, 10, 13, 14, 15) else "Q4_K" for layer in range(16)]


def test_a_type_that_needs_importances_says_which_tensor_and_what_to_do():
    types = TypeChoice("IQ2_M", "F16", (), mixes.Model(layers=16, heads=8, kv_heads=8))
    with pytest.raises(TsconvertError) as caught:
        types.matrix("blk.3.ffn_up.weight", 512)
    assert str(caught.value) == (
        "blk.3.ffn_up.weight: IQ2_M makes it IQ2_S, which needs an importance matrix; make one with"
        " `tsconvert imatrix` and give --imatrix, or choose another type"
    )


def test_names_in_any_case_and_short_ones():
    assert [mixes.mix_named(name) for name in ("q4_k_m", "Q4_K", "q3_k", "mxfp4")] == [
        "Q4_K_M", "Q4_K_M", "Q3_K_M", "MXFP4",
    ]  # fmt: skip


def test_every_type_has_a_way_to_be_asked_for():
    assert {mixes.MIXES.get(name, name) for name in [*mixes.MIXES, *ggml.weight_types()]} == set(ggml.weight_types())


def test_rows_that_blocks_do_not_divide():
    assert [mixes.fitting_type("Q4_K", columns) for columns in (512, 96, 48)] == ["Q4_K", "Q5_0", "F16"]
    assert [mixes.fitting_type("Q8_0", columns) for columns in (96, 48)] == ["Q8_0", "F16"]


def test_scales_of_ups_are_never_quantized():
    assert mixes.is_quantized("blk.1.ffn_up_exps.weight", 3)
    assert not mixes.is_quantized("blk.1.ffn_up_scale.weight", 2)
