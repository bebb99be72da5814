"""The families: what their descriptions name is there."""

import pytest

from tsconvert.model import modeling_turbosparse
from tsconvert.model.families import DENSE_TYPES, FAMILIES, LEFT_OUT, SPARSE_TYPES, WRAPPERS
from tsconvert.model.families.family import Family
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
