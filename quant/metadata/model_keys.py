"""The keys that say what a model is: its kind, size and shape, in llama.cpp's names (gguf-py's constants.py)."""

from ...model.spec import ModelSpec
from ..gguf.values import Value, f32, text, u32

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION (ggml.h)


def general_keys(spec: ModelSpec, architecture: str, name: str, type_name: str) -> dict[str, Value]:
    """The `general.*` keys of a model called ``name`` that is mostly ``type_name``."""
    return {
        "general.architecture": text(architecture),
        "general.type": text("model"),
        "general.name": text(name),
        "general.size_label": text(size_label(spec)),
        "general.file_type": u32(file_type(type_name)),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
    }


def shape_keys(spec: ModelSpec, architecture: str, context: int) -> dict[str, Value]:
    """The keys of a Llama-like model's shape, rope scaling left out."""
    counts = {
        "context_length": context,
        "embedding_length": spec.width,
        "block_count": spec.layers,
        "feed_forward_length": spec.neurons,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "rope.dimension_count": spec.rope_dim or spec.head_dim,
    }
    keys = {f"{architecture}.{name}": u32(count) for name, count in counts.items()}
    keys[f"{architecture}.attention.layer_norm_rms_epsilon"] = f32(spec.norm_eps)
    keys[f"{architecture}.rope.freq_base"] = f32(spec.rope_theta)
    return keys


def later_shape_keys(spec: ModelSpec, architecture: str) -> dict[str, Value]:
    """The keys that llama.cpp added after PowerInfer forked it: head size, vocabulary, experts."""
    counts = {
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "vocab_size": spec.vocab,
    }
    if spec.experts:
        counts |= {"expert_count": spec.experts, "expert_used_count": spec.experts_per_token}
    return {f"{architecture}.{name}": u32(count) for name, count in counts.items()}


def capped_context(spec: ModelSpec, engine: str, *, windows: bool = False) -> tuple[int, list[str]]:
    """The context length for an engine without ``windows``, and the note if it had to be capped."""
    if windows or spec.sliding_window is None or spec.sliding_window >= spec.context:
        return spec.context, []
    note = (
        f"context length capped at the sliding window, {spec.sliding_window} of {spec.context} tokens: {engine} attends"
        " to everything, which is the same only up to there"
    )
    return spec.sliding_window, [note]


def size_label(spec: ModelSpec) -> str:
    """gguf-py's size_label: `7B`, or `8x7B` for experts."""
    import gguf

    expert = 3 * spec.width * spec.neurons * spec.layers if spec.experts else 0
    total = spec.parameters
    return str(gguf.size_label(total, total - expert * spec.experts, expert, spec.experts))


def file_type(type_name: str) -> int:
    """enum llama_ftype's number for a file that is mostly ``type_name``."""
    import gguf

    types = gguf.LlamaFileType.__members__
    names = ["ALL_F32"] if type_name == "F32" else [f"MOSTLY_{type_name}{suffix}" for suffix in ("", "_M", "_S")]
    return int(next((types[name] for name in names if name in types), gguf.LlamaFileType.GUESSED))
