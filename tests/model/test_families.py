"""The families: what their descriptions name is there."""

import pytest

from tsconvert.model import modeling_turbosparse
from tsconvert.model.families import DENSE_TYPES, FAMILIES, SPARSE_TYPES
from tsconvert.model.families.family import Family
from tsconvert.model.tensor_names import GGUF_NAMES


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_familys_classes_and_roles_are_known(family: Family):
    config = family.transformers_class("Config")
    assert config.model_type == family.name
    for suffix in ("DecoderLayer", "RotaryEmbedding", "ForCausalLM"):
        assert (
            family.transformers_class(suffix).__module__ == f"transformers.models.{family.name}.modeling_{family.name}"
        )
    sparse = getattr(modeling_turbosparse, f"{family.sparse_prefix}Config")
    assert issubclass(sparse, config)
    assert sparse.model_type == family.sparse_type
    assert hasattr(modeling_turbosparse, f"{family.sparse_prefix}ForCausalLM")
    stacked = {role for roles in family.stacked.values() for role in roles}
    assert set(family.tensors) == set(GGUF_NAMES) - ({"router"} if not family.experts else set())
    assert stacked <= set(family.tensors) >= set(family.renamed)
    assert set(family.defaults) <= {*dir(config()), "rope_theta"}


def test_every_type_of_model_has_one_family():
    assert {kind: family.name for kind, family in (DENSE_TYPES | SPARSE_TYPES).items()} == {
        "llama": "llama", "mistral": "mistral", "mixtral": "mixtral", "turbosparse_llama": "llama",
        "turbosparse_mistral": "mistral", "turbosparse_mixtral": "mixtral", "bamboo": "mistral",
    }  # fmt: skip
