"""A GGUF file's metadata against the checkpoint: what engines compute with, and the tokenizer's tables."""

import json
import math
from collections.abc import Iterator
from typing import Any

from ...common.errors import shown
from ...model.checkpoint import Checkpoint
from ...model.families import FAMILIES
from ...model.files.gguf.file import POWERINFER, SPARSE, GgufFile
from ...model.spec import ACTIVATIONS as EVERY_ACTIVATION
from ...model.spec import THRESHOLDED
from ...quant.metadata.feature_keys import used_features
from ...quant.targets import separate_predictors
from ...quant.targets.predictor_source import PredictorSource
from .expected_tensors import turned_roles

ACTIVATIONS = {
    "sparse": EVERY_ACTIVATION,
    "powerinfer": ("drelu", "reglu"),
    "llama.cpp": ("swiglu", "geglu", "reglu", *THRESHOLDED),
}
"""Dialect -> the FFNs that its files can have."""
_TOLERANCE = 1e-6  # float32 keys hold decimal fractions


def dialect_of(file: GgufFile) -> str:
    """`sparse`, `powerinfer` or `llama.cpp`."""
    if file.magic == POWERINFER:
        return "powerinfer"
    return "sparse" if file.architecture == SPARSE else "llama.cpp"


def expected_keys(
    checkpoint: Checkpoint, dialect: str, predictors: PredictorSource | None, *, attention_share: bool = False
) -> dict[str, Any]:
    """What the keys of the model's shape and arithmetic must be; None: must not be there.

    Args:
        attention_share: predicted mode keeps a share of attention's outputs.
    """
    spec = checkpoint.spec
    gguf = FAMILIES[spec.family].gguf
    architecture = {
        "sparse": SPARSE, "powerinfer": "bamboo" if spec.activation == "drelu" else "llama"
    }.get(dialect, gguf.architecture)  # fmt: skip
    windows = dialect == "sparse" or (dialect == "llama.cpp" and "windows" in gguf.native)
    context = spec.context if windows else min(spec.context, spec.sliding_window or spec.context)
    keys: dict[str, Any] = {
        "context_length": context, "embedding_length": spec.width, "block_count": spec.layers,
        "feed_forward_length": spec.neurons, "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads, "rope.dimension_count": spec.rope_dim or spec.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm_eps, "rope.freq_base": spec.rope_theta,
        "expert_count": spec.experts or None, "expert_used_count": spec.experts_per_token or None,
    }  # fmt: skip
    if dialect == "sparse":
        keys["activation"] = spec.activation
        keys["activation_threshold"] = list(spec.thresholds) if any(spec.thresholds) else None
        keys["up_threshold"] = list(spec.up_thresholds) if any(spec.up_thresholds) else None
        features = used_features(
            spec, linear_predictors=predictors is not None and predictors.linear, attention_share=attention_share
        )
        keys |= {
            "format_version": 2 if features else 1,
            "features": features or None,
            "source_fingerprint": checkpoint.fingerprint,
        }
    if windows:
        keys["attention.sliding_window"] = spec.sliding_window
    keys |= {"attn_logit_softcapping": spec.attention_softcap or None}
    keys |= {"final_logit_softcapping": spec.logit_softcap or None}
    scaling, keys["rope.scaling.type"] = spec.rope_scaling or {}, None
    if scaling.get("rope_type") in ("linear", "yarn"):
        keys |= {"rope.scaling.type": scaling["rope_type"], "rope.scaling.factor": float(scaling["factor"])}
    if scaling.get("rope_type") == "longrope":
        keys["rope.scaling.type"] = "longrope" if dialect == "sparse" else None
        keys["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return {"general.architecture": architecture} | {f"{architecture}.{name}": value for name, value in keys.items()}


def compare_keys(
    file: GgufFile, checkpoint: Checkpoint, predictors: PredictorSource | None, overridden: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """(key, problem) for each key that is compared; the problem is empty where the key is right."""
    dialect = dialect_of(file)
    by_inputs = "attn_output" in turned_roles(file, dialect)
    wanted = expected_keys(checkpoint, dialect, predictors, attention_share=by_inputs)
    if dialect == "powerinfer":
        wanted["powerinfer.sparse_threshold"] = 0.0
    if dialect == "sparse" and predictors is not None:
        wanted[f"{SPARSE}.predictor.threshold"] = [value for row in predictors.thresholds for value in row]
        wanted[f"{SPARSE}.predictor.rank"] = [value for row in predictors.ranks for value in row]
    beside = separate_predictors.find_separate(file)
    for key, value in wanted.items():
        if key in overridden:
            continue
        found = file.metadata.get(key)
        if found is None and beside is not None:
            found = beside.metadata.get(key)
        same = _same(found, value)
        yield key, "" if same else f"is {_shown(found)} where the model makes it {_shown(value)}"


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, float) and isinstance(found, int | float):
        both_nan = math.isnan(found) and math.isnan(wanted)
        return both_nan or math.isclose(found, wanted, rel_tol=_TOLERANCE, abs_tol=1e-12)
    return bool(found == wanted)


def _shown(value: Any) -> str:
    return "missing" if value is None else shown(value)


def compare_tokens(file: GgufFile, hf: Any, overridden: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(key, problem) for the vocabulary: each id's token, the merges, the special ids and what is put around a text.

    Args:
        hf: transformers' tokenizer of the checkpoint.
    """
    keys, prefix = file.metadata, "tokenizer.ggml."
    tokens = keys.get(f"{prefix}tokens")
    tokens = tokens if isinstance(tokens, list) else []
    yield f"{prefix}tokens", _token_problem(tokens, hf, file)
    for name, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("unk", "unknown_token_id")):
        wanted = getattr(hf, f"{name}_token_id", None)
        found = keys.get(prefix + key)
        if wanted is not None and prefix + key not in overridden and wanted < len(tokens):
            yield prefix + key, "" if found == wanted else f"is {_shown(found)} where transformers has {wanted}"
    merges = _merges(hf)
    if keys.get(f"{prefix}model") == "gpt2" and merges is not None:
        same = keys.get(f"{prefix}merges") == merges
        yield f"{prefix}merges", "" if same else "differ from the tokenizer.json's"


def _token_problem(tokens: list[str], hf: Any, file: GgufFile) -> str:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) != embedding.shape[0]:
        return f"has {len(tokens)} tokens where the embedding has {embedding.shape[0]} rows"
    wanted = hf.convert_ids_to_tokens(list(range(min(len(hf), len(tokens)))))
    for index, (found, token) in enumerate(zip(tokens, wanted, strict=False)):
        if token is not None and found not in (token, token.replace("▁", " ")) and not found.startswith("[PAD"):
            return f"token {index} is {found!r} where transformers has {token!r}"
    return ""


def _merges(hf: Any) -> list[str] | None:
    model = json.loads(hf.backend_tokenizer.to_str())["model"]
    pairs = model.get("merges")
    if pairs is None:
        return None
    return [pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]
