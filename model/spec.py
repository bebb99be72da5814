"""The shape and the arithmetic of a model, read from a Hugging Face config.json and checked.

A key that is left out means what transformers' config class of that `model_type` makes of it (families/).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, shown
from ..common.files import read_json_object
from .config_values import real, whole
from .families import DENSE_TYPES, SPARSE_TYPES
from .families.family import Family
from .files.found_files import no_config
from .rope import read_rope

ACTIVATIONS = ("swiglu", "drelu", "reglu", "tswiglu")


_MOST = 2**31 - 1  # what compiled code counts with
_MOST_FFNS = 1 << 17  # in all layers; the largest models have some 16,000
_LATER = ("thresholds", "up_thresholds")  # fields of ModelSpec that fingerprints made before them did not cover


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The shape and the arithmetic of a model, whatever file it is in."""

    family: str
    """One of `families.FAMILIES`."""
    activation: str
    """The FFN's: `swiglu` silu(gate)*up, `drelu` relu(gate)*relu(up), `reglu` relu(gate)*up, `tswiglu` that of SwiGLU
    where |up| is over the layer's ``up_thresholds`` and it is itself, in size, over ``thresholds``, else 0."""
    layers: int
    width: int
    """D, the model width."""
    neurons: int
    """F, the neurons of one FFN (of one expert)."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    """Rows of the embedding; may be more than the tokenizer has tokens."""
    context: int
    """Tokens."""
    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None = None
    """The config's rope parameters where they are not the default ones."""
    sliding_window: int | None = None
    """Tokens, or None for full attention."""
    tied: bool = False
    """The output head is the embedding."""
    experts: int = 0
    """E, 0 for a dense FFN."""
    experts_per_token: int = 0
    thresholds: tuple[float, ...] = ()
    """Each layer's threshold: outputs of relu up to it count as zero (FATReLU, arXiv 2402.13516), under `tswiglu`
    activations of that size; empty: all 0."""
    up_thresholds: tuple[float, ...] = ()
    """Of `tswiglu`: the size up to which an up silences its neuron; empty: all 0."""
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise TsconvertError(f"activation is {shown(self.activation)}: it must be one of {', '.join(ACTIVATIONS)}")
        for name in ("layers", "width", "neurons", "heads", "kv_heads", "head_dim", "vocab", "context"):
            value = getattr(self, name)
            if not 1 <= value <= _MOST:
                limit = "at least 1" if value < 1 else f"at most {_MOST}"
                raise TsconvertError(f"{name} is {shown(value)}: it must be {limit}")
        self._check_reals()
        if self.layers * max(1, self.experts) > _MOST_FFNS:
            raise TsconvertError(
                f"layers is {self.layers} and experts is {self.experts}: no model has more than {_MOST_FFNS} FFNs"
            )
        if self.heads % self.kv_heads:
            raise TsconvertError(f"heads is {self.heads}: it must be a multiple of kv_heads, {self.kv_heads}")
        for values, whose in (
            (self.thresholds, self.sparse), (self.up_thresholds, self.activation == "tswiglu")
        ):  # fmt: skip
            if values and not (whose and len(values) == self.layers and all(0 <= t < math.inf for t in values)):
                raise TsconvertError(
                    f"thresholds are {shown(list(values))}: a sparse model may have one of at least 0 for each of"
                    f" its {self.layers} layers"
                )
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise TsconvertError(f"experts_per_token is {self.experts_per_token}: it must be 1 to {self.experts}")

    def _check_reals(self) -> None:
        if not 0 <= self.norm_eps < math.inf:
            raise TsconvertError(f"norm_eps is {self.norm_eps:g}: it must be a number of at least 0")
        if not 0 < self.rope_theta < math.inf:
            raise TsconvertError(f"rope_theta is {self.rope_theta:g}: it must be a number above 0")

    @property
    def identity(self) -> str:
        """The text that a fingerprint covers; later fields only where they are set: older fingerprints stay valid."""
        kept = [field for field in fields(self) if field.name not in _LATER or getattr(self, field.name)]
        return f"ModelSpec({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in kept)})"

    @property
    def sparse(self) -> bool:
        """Whether the FFN's activations are exactly zero for most neurons."""
        return self.activation != "swiglu"

    @property
    def ffns(self) -> int:
        """FFNs in one layer: the experts, or one."""
        return max(1, self.experts)

    @property
    def active_ffns(self) -> int:
        """FFNs of a layer that a token goes through."""
        return self.experts_per_token or 1

    @property
    def layer_weights(self) -> tuple[int, int]:
        """Weights of one decoder layer: of its attention's matrices, of all its FFNs'."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return attention, 3 * self.width * self.neurons * self.ffns

    @property
    def parameters(self) -> int:
        """Weights of the whole model, predictors not counted."""
        router, norms = self.width * self.experts, 2 * self.width
        head = self.vocab * self.width * (1 if self.tied else 2)
        return self.layers * (sum(self.layer_weights) + router + norms) + head + self.width


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise no_config(folder)
    return read_json_object(path)


def read_spec(folder: Path) -> ModelSpec:
    """The spec of the checkpoint in ``folder``.

    Raises:
        TsconvertError: config.json is missing, is of no known family, or asks for arithmetic that the conversion does
            not cover; the message names the field and its value.
    """
    return spec_of(read_config(folder), folder / "config.json")


def spec_of(config: Mapping[str, Any], where: Path) -> ModelSpec:
    """The spec that a config.json's content describes. ``where`` is named in errors."""
    family = _family(config, where)
    activation = _activation(config, family, where)
    _refuse(config, family, where)
    config = {**family.defaults, **config}

    def size(field: str, null: int | None = None) -> int:
        if config[field] is None and field in family.nullable and null is not None:
            return null
        return whole(config, where, field)

    width, heads = size("hidden_size"), size("num_attention_heads")
    context = size("max_position_embeddings")
    rope_theta, rope_scaling = read_rope(config, where, family.defaults["rope_theta"], context)
    windowed = family.sliding_window and config["sliding_window"] is not None
    fields: dict[str, Any] = {
        "family": family.name,
        "activation": activation,
        "layers": size("num_hidden_layers"),
        "width": width,
        "neurons": size("intermediate_size"),
        "heads": heads,
        "kv_heads": size("num_key_value_heads", null=heads),
        "head_dim": size("head_dim", null=width // heads),
        "vocab": size("vocab_size"),
        "context": context,
        "norm_eps": real(config, where, "rms_norm_eps"),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "sliding_window": size("sliding_window") if windowed else None,
        "tied": _truth(config, where, "tie_word_embeddings"),
        "experts": size("num_local_experts") if family.experts else 0,
        "experts_per_token": size("num_experts_per_tok") if family.experts else 0,
        "thresholds": _thresholds(config, "ffn_thresholds", where),
        "up_thresholds": _thresholds(config, "ffn_up_thresholds", where),
        "bos": _token(config.get("bos_token_id")),
        "eos": _tokens(config.get("eos_token_id")),
    }
    try:
        return ModelSpec(**fields)
    except TsconvertError as error:
        raise TsconvertError(f"{where}: {error}") from None


def _family(config: Mapping[str, Any], where: Path) -> Family:
    kind = config.get("model_type")
    known = DENSE_TYPES | SPARSE_TYPES
    if not isinstance(kind, str) or kind not in known:
        names = ", ".join(known)
        raise TsconvertError(
            f"{where}: model_type is {shown(kind)}; tsconvert converts {names}, so choose one of those"
        )
    return known[kind]


def _activation(config: Mapping[str, Any], family: Family, where: Path) -> str:
    if config["model_type"] in SPARSE_TYPES:
        return str(config.get("ffn_activation", "drelu"))
    act = config.get("hidden_act", family.defaults["hidden_act"])
    if act == "relu" and _released_sparse(config):
        return "drelu"
    if act not in ("silu", "swish"):
        raise TsconvertError(
            f"{where}: hidden_act is {shown(act)}; tsconvert replaces SwiGLU, so the model must have hidden_act 'silu'"
        )
    return "swiglu"


def _released_sparse(config: Mapping[str, Any]) -> bool:
    """Whether the classes are those of TurboSparse's releases: dReLU under a base model's `model_type`."""
    auto, named = config.get("auto_map"), config.get("architectures")
    classes = [*(named if isinstance(named, list) else ()), *(auto.values() if isinstance(auto, Mapping) else ())]
    return any(name in str(each).lower() for each in classes for name in ("turbosparse", "bamboo"))


def _refuse(config: Mapping[str, Any], family: Family, where: Path) -> None:
    for field in ("attention_bias", "mlp_bias"):
        if field in config and _truth(config, where, field):
            raise TsconvertError(f"{where}: {field} is true; tsconvert covers models without biases, choose one")
    if config.get("quantization_config"):
        raise TsconvertError(
            f"{where}: the weights are quantized ({quantization_method(config)}); convert the unquantized checkpoint"
        )
    for field, harmless in family.fixed.items():
        if field in config and config[field] not in harmless:
            raise TsconvertError(
                f"{where}: {field} is {shown(config[field])}; it changes what the model computes and tsconvert does not"
                f" cover it, choose a model where it is {harmless[0]!r}"
            )
    _refuse_layer_types(config, family, where)
    experts = config.get("num_experts")  # transformers' other name of the key
    if family.experts and "num_experts" in config and experts != config.get("num_local_experts"):
        raise TsconvertError(
            f"{where}: num_experts is {shown(experts)} and num_local_experts"
            f" {shown(config.get('num_local_experts'))}; give num_local_experts alone"
        )


def _refuse_layer_types(config: Mapping[str, Any], family: Family, where: Path) -> None:
    """transformers' classes of these families treat all layers alike, whatever ``layer_types`` says."""
    types = config.get("layer_types")
    window = family.sliding_window and config.get("sliding_window", family.defaults["sliding_window"])
    alike = "sliding_attention" if window else "full_attention"
    if types and not (isinstance(types, list) and all(each == alike for each in types)):
        raise TsconvertError(
            f"{where}: layer_types is {shown(types)}; in a {family.name} model all layers are {alike}, choose one of"
            " those"
        )


def quantization_method(config: Mapping[str, Any]) -> str:
    """The method that a config's `quantization_config` names."""
    quantized = config.get("quantization_config")
    return str(quantized.get("quant_method", "unknown"))[:60] if isinstance(quantized, Mapping) else "unknown"


def _truth(config: Mapping[str, Any], where: Path, field: str) -> bool:
    value = config[field]
    if not isinstance(value, bool):
        raise TsconvertError(f"{where}: {field} is {shown(value)}; it must be true or false")
    return value


def _thresholds(config: Mapping[str, Any], key: str, where: Path) -> tuple[float, ...]:
    values = config.get(key) or ()
    known = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    if not known or any(abs(value) > _MOST for value in values):
        raise TsconvertError(f"{where}: {key} is {shown(values)}; it must be a list of numbers, one a layer")
    return tuple(float(value) for value in values)


def _token(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _tokens(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(token for token in values if isinstance(token, int))
