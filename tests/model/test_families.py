"""The families: what their descriptions name is there."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from tsconvert.common.errors import TsconvertError
from tsconvert.model import modeling_turbosparse
from tsconvert.model.families import DENSE_TYPES, FAMILIES, LEFT_OUT, SPARSE_TYPES, WRAPPERS
from tsconvert.model.families.family import Family
from tsconvert.model.spec import spec_of
from tsconvert.model.tensor_names import GGUF_NAMES, NORMS


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_familys_classes_and_roles_are_known(family: Family):
    config = family.transformers_class("Config")
    assert config.model_type == family.name
    for suffix in ("DecoderLayer", "RotaryEmbedding", "ForCausalLM"):
        assert family.transformers_class(suffix)
    sparse = getattr(modeling_turbosparse, f"{family.sparse_prefix}Config")
    assert issubclass(sparse, config)
    assert sparse.model_type == family.sparse_type
    assert hasattr(modeling_turbosparse, f"{family.sparse_prefix}ForCausalLM")
    stacked = {role for roles in family.stacked.values() for role in roles}
    plain = {role for role in GGUF_NAMES if not role.endswith("_bias")}
    assert set(family.tensors) <= plain
    assert plain - set(family.tensors) <= {"router", *NORMS}
    assert stacked <= set(family.tensors) >= set(family.renamed)


def test_every_type_of_model_has_one_family():
    assert list(FAMILIES)[:3] == ["llama", "mistral", "mixtral"]
    assert DENSE_TYPES == FAMILIES
    sparse = {f"turbosparse_{name}": family for name, family in FAMILIES.items()}
    assert sparse | {"bamboo": FAMILIES["mistral"]} == SPARSE_TYPES
    assert not DENSE_TYPES.keys() & (WRAPPERS.keys() | LEFT_OUT.keys())


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.since != Family.since])
def test_a_family_is_refused_where_transformers_is_too_old(monkeypatch: pytest.MonkeyPatch, name: str):
    """Before it is read, and by the class that is saved with it."""
    family, here = FAMILIES[name], version("transformers")
    newer = replace(family, since=f"{int(here.split('.')[0]) + 1}.2.0") if family.covered else family
    monkeypatch.setitem(DENSE_TYPES, name, newer)
    with pytest.raises(TsconvertError) as caught:
        spec_of({"model_type": name}, Path("m/config.json"))
    assert str(caught.value) == (
        f"m/config.json: model_type is '{name}', for which transformers must be {newer.since} or newer and this is"
        f" {here}; install a newer one (pip install -U transformers)"
    )
    if name not in CONFIG_MAPPING:
        with pytest.raises(AttributeError, match=f"transformers {here} has no .*ForCausalLM; a newer one may"):
            getattr(modeling_turbosparse, f"{family.sparse_prefix}ForCausalLM")
        return
    config, model = (getattr(modeling_turbosparse, family.sparse_prefix + end) for end in ("Config", "ForCausalLM"))
    with pytest.raises(ImportError, match=f" needs transformers {newer.since}, this is {here}"):
        model(config(transformers_since=newer.since))
