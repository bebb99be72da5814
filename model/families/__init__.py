"""The model families that tsconvert converts, one file each.

To add a family: write its file like `mixtral.py`, list it in FAMILIES, and give modeling_turbosparse.py its classes.
"""

from .family import Family
from .llama import LLAMA
from .mistral import MISTRAL
from .mixtral import MIXTRAL

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA, MISTRAL, MIXTRAL)}
DENSE_TYPES = {family.name: family for family in FAMILIES.values()}
"""`model_type` in the config.json of a dense model -> its family."""
SPARSE_TYPES = {family.sparse_type: family for family in FAMILIES.values()} | {
    alias: family for family in FAMILIES.values() for alias in family.sparse_aliases
}
"""`model_type` in the config.json of a sparse model -> its family."""
