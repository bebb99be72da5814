"""The matrix of configs: each key of each family absent, null, default and changed.

Either the sweep gives the logits of transformers' AutoModelForCausalLM, or the config is refused by the key's name.
"""

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.families import FAMILIES
from tsconvert.model.families.family import HARMLESS, Family
from tsconvert.model.spec import spec_of
from tsconvert.model.sweep import sweep

Make = Callable[..., Path]
ABSENT = object()
OLD = ("llama", "mistral", "mixtral")
READ_APART = {"rope_parameters"}
ROWS_NS = torch.randint(3, 256, (2, 96), generator=torch.Generator().manual_seed(1))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
COMPUTED: list[tuple[str, Mapping[str, Any]]] = [
    ("rms_norm_eps", {"rms_norm_eps": 0.01}),
    ("rope_theta", {"rope_theta": 100.0}),
    ("hidden_act", {"hidden_act": "swish"}),
    ("sliding_window", {"sliding_window": 16}),
    ("max_position_embeddings", {"max_position_embeddings": 32}),
    ("tie_word_embeddings", {"tie_word_embeddings": True}),
    ("partial_rotary_factor", {"partial_rotary_factor": None}),
    ("rope_theta", {"rope_theta": 100.0, "rope_parameters": {"rope_theta": 1e3}}),
    ("rope_scaling", {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_theta": 9.0}}),
    ("rope_scaling", {"rope_scaling": LLAMA3}),
    ("original_max_position_embeddings", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16}),
    ("original_max_position_embeddings", {
        "rope_scaling": {key: value for key, value in LLAMA3.items() if not key.startswith("original")}}),
    ("rope_scaling", {"rope_scaling": YARN}),
    ("rope_scaling", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    ("factor", {"rope_scaling": YARN | {"factor": None}}),
    ("original_max_position_embeddings", {"rope_scaling": YARN, "original_max_position_embeddings": 16}),
    ("truncate", {"rope_scaling": YARN | {"truncate": True}}),
    ("attention_factor", {"rope_scaling": YARN | {"attention_factor": 1.5}}),
    ("attention_factor", {"rope_scaling": YARN | {"attention_factor": None}}),
    ("mscale", {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("beta_fast", {"rope_scaling": YARN | {"beta_fast": 8.0, "beta_slow": 2.0}}),
    ("beta_fast", {"rope_scaling": YARN | {"beta_fast": None}}),
    ("anything", {"anything": {"of": "others"}, "use_sliding_window": False, "attention_dropout": 0.5}),
]  # fmt: skip
REFUSED: list[tuple[str, Mapping[str, Any]]] = [
    ("hidden_act", {"hidden_act": "gelu"}),
    ("sliding_window", {"sliding_window": 0}),
    ("attention_bias", {"attention_bias": True}),
    ("mlp_bias", {"mlp_bias": True}),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
    ("partial_rotary_factor", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    ("is_causal", {"is_causal": False}),
    ("per_layer_config", {"per_layer_config": {"1": {"rms_norm_eps": 0.1}}}),
    ("layer_types", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("num_experts", {"num_experts": 2}),
    ("rope_theta", {"rope_parameters": {"rope_theta": None}}),
    ("rope_type", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    ("rope_parameters", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}),
    ("factor", {"rope_scaling": {"type": "linear"}}),
    ("factor", {"rope_scaling": LLAMA3 | {"factor": None}}),
    ("low_freq_factor", {"rope_scaling": LLAMA3 | {"low_freq_factor": None}}),
    ("high_freq_factor", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}),
    ("original_max_position_embeddings", {"rope_scaling": LLAMA3, "original_max_position_embeddings": None}),
    ("original_max_position_embeddings", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}}),
    ("truncate", {"rope_scaling": YARN | {"truncate": False}}),
    ("truncate", {"rope_scaling": YARN | {"truncate": None}}),
]  # fmt: skip
OF_SHAPE = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_local_experts",
}  # fmt: skip
KEYS = sorted({key for family in OLD for key in FAMILIES[family].defaults})


@pytest.fixture(scope="module")
def base(make_checkpoint: Make) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in folders:
            folders[family] = make_checkpoint(
                family, vocab_size=256, num_attention_heads=8, num_key_value_heads=8, head_dim=8
            )
        return folders[family]

    return of


def _folder(source: Path, out: Path, config: Mapping[str, Any]) -> Path:
    out.mkdir()
    os.link(source / "model.safetensors", out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config))
    return out


def _verdict(folder: Path, key: str) -> str:
    """`same` or `refused`; fails where neither holds."""
    try:
        ours = torch.stack(list(sweep(Checkpoint(folder), ROWS_NS, []).logits(slice(None))))
    except TsconvertError as error:
        sentence = str(error)
        named = key in sentence or "has shape" in sentence or (key == "num_hidden_layers" and "layers.2." in sentence)
        if not named:
            pytest.fail(sentence)
        return "refused"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(input_ids=ROWS_NS).logits
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    return "same"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", range(len(COMPUTED)), ids=[f"{i}-{key}" for i, (key, _) in enumerate(COMPUTED)])
@pytest.mark.parametrize("family", OLD)
def test_a_key_that_is_covered(base: Callable[[str], Path], tmp_path: Path, family: str, change: int):
    key, fields = COMPUTED[change]
    assert _verdict(_changed(base(family), tmp_path, fields), key) == "same"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", range(len(REFUSED)), ids=[f"{i}-{key}" for i, (key, _) in enumerate(REFUSED)])
@pytest.mark.parametrize("family", OLD)
def test_a_key_that_is_not_covered(base: Callable[[str], Path], tmp_path: Path, family: str, change: int):
    key, fields = REFUSED[change]
    experts = key == "num_experts" and not FAMILIES[family].experts
    without = experts or (key == "sliding_window" and not FAMILIES[family].sliding_window)
    assert _verdict(_changed(base(family), tmp_path, fields), key) == ("same" if without else "refused")


def _changed(source: Path, tmp_path: Path, fields: Mapping[str, Any]) -> Path:
    config = json.loads((source / "config.json").read_text())
    config.pop("rope_parameters")
    return _folder(source, tmp_path / "m", config | fields)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", ["absent", "null", "default"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("family", OLD)
def test_a_key_absent_null_or_default(base: Callable[[str], Path], tmp_path: Path, family: str, key: str, value: str):
    source, defaults = base(family), FAMILIES[family].defaults
    config = json.loads((source / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"]}
    config.pop(key, None)
    config |= {"absent": {}, "null": {key: None}, "default": {key: defaults[key]} if key in defaults else {}}[value]
    null = value == "null" and key in defaults and key not in FAMILIES[family].nullable
    shape = value != "null" and key in OF_SHAPE and key in defaults  # the file's tensors are smaller
    verdict = _verdict(_folder(source, tmp_path / "m", config), key)
    assert verdict == ("refused" if null or shape else "same")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_defaults_are_those_of_transformers_config_class(family: Family):
    theirs = family.transformers_class("Config")()
    given = family.transformers_class("Config")(**family.defaults).to_dict()
    assert theirs.to_dict() == {key: given[key] for key in theirs.to_dict()}
    spec = spec_of({"model_type": family.name}, Path("config.json"))
    types = getattr(theirs, "layer_types", None)
    local = getattr(theirs, "sliding_window", None) if types is None or "sliding_attention" in types else None
    assert (spec.sliding_window, spec.context) == (local, theirs.max_position_embeddings)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_key_of_the_config_class_is_read_or_harmless(family: Family):
    """A newer transformers with a key that is neither fails here."""
    config_class = family.transformers_class("Config")
    if dataclasses.is_dataclass(config_class):
        keys = {field.name for field in dataclasses.fields(config_class)}
    else:  # transformers 5.0
        keys = set(inspect.signature(config_class).parameters) - {"kwargs"}
    assert keys - HARMLESS - READ_APART <= family.defaults.keys() | family.fixed.keys()


@pytest.mark.filterwarnings("ignore")
def test_a_window_left_out_is_transformers_4096(make_checkpoint: Make, tmp_path: Path):
    """Beyond 4096 tokens a Mistral without `sliding_window` does not see everything."""
    source = make_checkpoint(
        "mistral", vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8192,
    )  # fmt: skip
    config = json.loads((source / "config.json").read_text())
    rows_NS = torch.randint(3, 64, (1, 4160), generator=torch.Generator().manual_seed(2))
    logits = {}
    for name, fields in {"null": {"sliding_window": None}, "absent": {}}.items():
        config.pop("sliding_window", None)
        folder = _folder(source, tmp_path / name, config | fields)
        ours = torch.stack(list(sweep(Checkpoint(folder), rows_NS, []).logits(slice(None))))
        with torch.no_grad():
            theirs = AutoModelForCausalLM.from_pretrained(folder)(input_ids=rows_NS).logits
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
        logits[name] = ours[0]
    assert torch.allclose(logits["null"][:4096], logits["absent"][:4096], atol=1e-4)
    assert (logits["null"][4096:] - logits["absent"][4096:]).abs().max() > 1e-3


def _other_values(family: Family) -> list[tuple[str, Any]]:
    """Keys of a family that are no shape, each with another value than its small model has."""
    numbers = [(key, value) for key, value in family.defaults.items() if key not in OF_SHAPE | READ_APART]
    other = {bool: lambda value: not value, float: lambda value: 3 * value or 0.5, int: lambda value: value + 1}
    found = [(key, other[type(value)](value)) for key, value in numbers if type(value) in other]
    unset = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 3.0, "sliding_window": 20}
    return found + [(key, unset[key]) for key, value in numbers if value is None and key in unset]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_key_of_every_family_changed(make_family: Make, tmp_path: Path, family: Family):
    """The same logits as transformers', or refused by the key's name."""
    source = make_family(family.name)
    config = json.loads((source / "config.json").read_text())
    for key, value in _other_values(family):
        _verdict(_folder(source, tmp_path / key, config | {key: value}), key)
