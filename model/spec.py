"""The shape and the arithmetic of a model, read from a Hugging Face config.json and checked.

A key that is left out means what transformers' config class of that `model_type` makes of it (families/).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, shown
from ..common.files import read_json_object
from .config_values import real, whole
from .families import DENSE_TYPES, FAMILIES, LEFT_OUT, SPARSE_TYPES, WRAPPERS
from .families.family import Family
from .files.found_files import no_config
from .files.kinds import kind_of
from .rope import read_rope

ACTIVATIONS = ("swiglu", "geglu", "drelu", "reglu", "tswiglu", "tgeglu")
DENSE_ACTIVATIONS = ("swiglu", "geglu")
THRESHOLDED = {"tswiglu": "swiglu", "tgeglu": "geglu"}
"""Activation with thresholds -> the dense one that it is where nothing is silent."""


def with_own_gate(activation: str, own: str) -> str:
    """``activation`` in a model whose own is ``own``: thresholds keep what its gate goes through."""
    return "tgeglu" if activation == "tswiglu" and own in ("geglu", "tgeglu") else activation


_MOST = 2**31 - 1  # what compiled code counts with
_MOST_FFNS = 1 << 17  # in all layers; the largest models have some 16,000


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The shape and the arithmetic of a model, whatever file it is in."""

    family: str
    """One of `families.FAMILIES`."""
    activation: str
    """The FFN's: `swiglu` silu(gate)*up, `geglu` gelu(gate)*up (by tanh), `drelu` relu(gate)*relu(up), `reglu`
    relu(gate)*up, `tswiglu` and `tgeglu` those of SwiGLU and GeGLU where |up| (times the neuron's scale, if
    ``up_scaled``) is over the layer's ``up_thresholds`` and they, in size, are over ``thresholds``, else 0."""
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
    """Each layer's threshold: outputs of relu up to it count as zero (FATReLU, arXiv 2402.13516), under
    `tswiglu` and `tgeglu` activations of that size; empty: all 0."""
    up_thresholds: tuple[float, ...] = ()
    """Of these two: the size up to which an up silences its neuron; empty: all 0."""
    up_scaled: bool = False
    """Of these two: each neuron has a scale for the size of its up (tensor_names.UP_SCALE)."""
    bos: int | None = None
    eos: tuple[int, ...] = ()
    # features that plain Llama does not have; each is implemented once in layers, exporter and runner
    biases: tuple[str, ...] = ()
    """Roles of the matrices that have a bias, of BIASED."""
    qk_norm: str = ""
    """RMSNorm of queries and keys before rope: `head` by head with one weight, `whole` over all heads; empty: none."""
    norms: str = "pre"
    """Norms of the inputs of attention and FFN (`pre`), of their outputs before these are added (`post`), `both`."""
    full_layers: tuple[int, ...] = ()
    """Layers that see everything although there is a sliding window."""
    rope_dim: int | None = None
    """Dimensions of a head that rotate, or None for all."""
    local_rope_theta: float | None = None
    """The base of the rope in layers with a window, unscaled there; None: that of the others, scaled alike."""
    no_rope_layers: tuple[int, ...] = ()
    attention_softcap: float = 0.0
    """c of c * tanh(x / c) over attention's scores; 0: none."""
    logit_softcap: float = 0.0
    attention_scale: float | None = None
    """The factor on queries times keys; None: 1 / sqrt(head_dim)."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """The factor on what attention and FFN add."""
    logit_scale: float = 1.0
    norm_offset: float = 0.0
    """What is added to the weights of all norms of a checkpoint; in GGUF files it has been."""
    attention_temperature: float = 0.0
    """b: a query at position p is multiplied by 1 + b ln(1 + floor(p / original context)) (Llama 4)."""
    router_normalized: bool = True
    """The weights of the chosen experts sum to 1; or else each is its share among all experts."""

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
            (self.thresholds, self.sparse), (self.up_thresholds, self.activation in THRESHOLDED)
        ):  # fmt: skip
            if values and not (whose and len(values) == self.layers and all(0 <= t < math.inf for t in values)):
                raise TsconvertError(
                    f"thresholds are {shown(list(values))}: a sparse model may have one of at least 0 for each of"
                    f" its {self.layers} layers"
                )
        if self.up_scaled and self.activation not in THRESHOLDED:
            raise TsconvertError(
                f"ups have scales and the activation is {self.activation}: only tswiglu and tgeglu have them"
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
        later = {field.name: field.default for field in fields(self) if field.name in _LATER}
        kept = [field for field in fields(self) if later.get(field.name, later) != getattr(self, field.name)]
        return f"ModelSpec({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in kept)})"

    @property
    def sparse(self) -> bool:
        """Whether the FFN's activations are exactly zero for most neurons."""
        return self.activation not in DENSE_ACTIVATIONS

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


_FIELDS = tuple(field.name for field in fields(ModelSpec))
_LATER = {"thresholds", "up_thresholds", "up_scaled", *_FIELDS[_FIELDS.index("eos") + 1 :]}
"""Fields that fingerprints made before them did not cover."""


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise no_config(folder)
    return read_json_object(path)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model in that of a model with other parts as well; another config as it is."""
    inner = config.get("text_config")
    kind = config.get("model_type")
    if not isinstance(inner, Mapping) or not isinstance(kind, str) or kind not in WRAPPERS:
        return dict(config)
    outer = {key: config[key] for key in _OF_BOTH if key in config and key not in inner}
    return {"model_type": WRAPPERS[kind], **outer, **inner}


_OF_BOTH = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "quantization_config")
"""Keys that stand outside of `text_config` and hold for the language model too."""


def spec_of(config: Mapping[str, Any], where: Path) -> ModelSpec:
    """The spec that a config.json's content describes. ``where`` is named in errors.

    Raises:
        TsconvertError: it is of no known family, or asks for arithmetic that the conversion does not cover; the message
            names the field and its value.
    """
    config = text_config(config)
    family = family_of(config, where)
    activation = _activation(config, family, where)
    _refuse(config, family, where)
    aliased = {key: config[alias] for key, alias in _ALIASES.items() if alias in config}
    config = {**family.defaults, **{key: aliased[key] for key in aliased if key in family.defaults}, **config}

    def size(name: str, null: int | None = None) -> int:
        key = family.key(name)
        if config[key] is None and key in family.nullable and null is not None:
            return null
        return whole(config, where, key)

    width, heads = size("hidden_size"), size("num_attention_heads")
    fields: dict[str, Any] = {
        "family": family.name,
        "activation": activation,
        "layers": size("num_hidden_layers"),
        "width": width,
        "neurons": size("intermediate_size"),
        "heads": heads,
        "kv_heads": size("num_key_value_heads", null=heads),
        "head_dim": size("head_dim", null=width // heads) if "head_dim" in config else width // heads,
        "vocab": size("vocab_size"),
        "context": size("max_position_embeddings"),
        "norm_eps": real(config, where, "rms_norm_eps"),
        "tied": _truth(config, where, "tie_word_embeddings"),
        "experts": size("num_local_experts") if family.experts else 0,
        "experts_per_token": size("num_experts_per_tok") if family.experts else 0,
        "thresholds": _thresholds(config, "ffn_thresholds", where),
        "up_thresholds": _thresholds(config, "ffn_up_thresholds", where),
        "up_scaled": _truth({"ffn_up_scaled": False, **config}, where, "ffn_up_scaled"),
        "bos": _token(config.get("bos_token_id")),
        "eos": _tokens(config.get("eos_token_id")),
        "norms": family.norms,
        "biases": tuple(role for key, roles in family.biases.items() if _truth(config, where, key) for role in roles),
    }
    fields |= _windows(config, family, fields["layers"], where)
    fields |= read_rope(config, where, family, fields["context"], fields["head_dim"])
    try:
        return ModelSpec(**fields | _features(config, family, where))
    except TsconvertError as error:
        raise TsconvertError(f"{where}: {error}") from None


_ALIASES = {"num_experts": "num_local_experts", "num_local_experts": "num_experts"}
"""Key -> transformers' other name of it."""


def _features(config: Mapping[str, Any], family: Family, where: Path) -> dict[str, Any]:
    """What else the family has, some of it by the config."""
    found = {}
    for name, value in family.features.items():
        if not callable(value):
            found[name] = value
            continue
        try:
            found[name] = value(config)
        except (TypeError, ValueError, ArithmeticError, AttributeError, KeyError, OverflowError) as error:
            raise TsconvertError(
                f"{where}: {name} cannot be made out of this config ({error}); download the file again"
            ) from None
    return found


def _windows(config: Mapping[str, Any], family: Family, layers: int, where: Path) -> dict[str, Any]:
    """The sliding window, and the layers without."""
    used = "use_sliding_window" not in family.defaults or _truth(config, where, "use_sliding_window")
    if not used or not family.sliding_window or config["sliding_window"] is None:
        _check_layer_types(config, family, [False] * layers, where)
        return {}
    window = whole(config, where, "sliding_window")
    types = config.get("layer_types") if "layer_types" in family.defaults else None
    local = [True] * layers
    if types is not None:
        known = isinstance(types, list) and all(each in _LAYER_TYPES for each in types)
        if not known or len(types) != layers:
            raise TsconvertError(
                f"{where}: layer_types is {shown(types)}; it must have {' or '.join(_LAYER_TYPES)} for each of the"
                f" {layers} layers"
            )
        local = [each == "sliding_attention" for each in types]
    elif family.windows is not None:
        local = _features(config, replace(family, features={"layer_types": family.windows}), where)["layer_types"]
    _check_layer_types(config, family, local, where)
    full = tuple(layer for layer, limited in enumerate(local) if not limited)
    return {} if len(full) == layers else {"sliding_window": window, "full_layers": full}


_LAYER_TYPES = ("full_attention", "sliding_attention")


def _check_layer_types(config: Mapping[str, Any], family: Family, local: list[bool], where: Path) -> None:
    """Refuse ``layer_types`` that say other than what transformers' class does."""
    types = config.get("layer_types")
    alike = [_LAYER_TYPES[limited] for limited in local]
    if types and types != alike and not (isinstance(types, list) and set(types) == set(alike)):
        raise TsconvertError(
            f"{where}: layer_types is {shown(types)}; in a {family.name} model all layers are {alike[0]}, choose one of"
            " those"
        )


def family_of(config: Mapping[str, Any], where: Path) -> Family:
    """The family of a config's `model_type`. ``where`` is named in errors."""
    kind = config.get("model_type")
    known = DENSE_TYPES | SPARSE_TYPES
    if isinstance(kind, str) and kind in known:
        family = known[kind]
        if not family.covered:
            raise TsconvertError(
                f"{where}: model_type is {shown(kind)}, for which transformers must be {family.since} or newer and this"
                f" is {version('transformers')}; install a newer one (pip install -U transformers)"
            )
        return family
    if isinstance(kind, str) and kind in LEFT_OUT:
        raise TsconvertError(f"{where}: model_type is {shown(kind)}; {LEFT_OUT[kind]}, so choose another model")
    if kind is None and config.get("format") and (made := kind_of(where.parent)):
        raise TsconvertError(f"{where.parent}: is {made}")
    near = get_close_matches(kind.lower(), FAMILIES, 1, 0.0)[0] if isinstance(kind, str) else "llama"
    raise TsconvertError(
        f"{where}: model_type is {shown(kind)}; tsconvert converts {', '.join(FAMILIES)}. The nearest is {near}: a"
        f" model that differs from it by names and numbers alone needs one file like model/families/{near}.py, which"
        " CONTRIBUTING.md describes; or choose a model of those"
    )


def _activation(config: Mapping[str, Any], family: Family, where: Path) -> str:
    if config["model_type"] in SPARSE_TYPES:
        return str(config.get("ffn_activation", "drelu"))
    key = family.key("hidden_act")
    act = config.get(key, family.defaults[key])
    if act == "relu" and _released_sparse(config):
        return "drelu"
    if not isinstance(act, str) or act not in family.activations:
        usual = next(iter(family.activations))
        glu = "SwiGLU" if family.activations[usual] == "swiglu" else "GeGLU"
        raise TsconvertError(
            f"{where}: {key} is {shown(act)}; tsconvert replaces {glu}, so the model must have {key} {usual!r}"
        )
    return family.activations[act]


def _released_sparse(config: Mapping[str, Any]) -> bool:
    """Whether the classes are those of TurboSparse's releases: dReLU under a base model's `model_type`."""
    auto, named = config.get("auto_map"), config.get("architectures")
    classes = [*(named if isinstance(named, list) else ()), *(auto.values() if isinstance(auto, Mapping) else ())]
    return any(name in str(each).lower() for each in classes for name in ("turbosparse", "bamboo"))


def _refuse(config: Mapping[str, Any], family: Family, where: Path) -> None:
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
    experts, alias = family.key("num_local_experts"), _ALIASES[family.key("num_local_experts")]
    if family.experts and experts in config and alias in config and config[alias] != config[experts]:
        raise TsconvertError(
            f"{where}: {alias} is {shown(config[alias])} and {experts} {shown(config[experts])}; give {experts} alone"
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
