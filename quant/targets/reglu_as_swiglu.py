"""ReGLU where an engine computes SwiGLU: silu(K g) / K differs from relu(g) by at most 0.2785 / K.

Powers of two, which no float type rounds, move K among the weights of an FFN. The norm before it is scaled by 2^-a (a
router, which sees that norm as well, by 2^a), gate by 2^(a + k) so that SiLU sees 2^k g, up by 2^b and down by 2^c with
a = k + b + c: the FFN's output is the same.
"""

import math
from dataclasses import asdict, dataclass

from ...model.checkpoint import Checkpoint
from ...model.tensor_names import Place, ffn_places
from ..gguf.values import Value, i32
from ..types.type_choice import TypeChoice
from .checkpoint_rows import check

KEYS = "tsconvert.reglu_as_swiglu"
_ENDS_AT = 2.0**16  # float16's, which is also the type of blocks' scales
_WIDE = ("F32", "BF16")


@dataclass(frozen=True, kw_only=True)
class Exponents:
    """Binary logarithms of the factors."""

    sharpness: int
    """k: SiLU sees 2^k g."""
    norm: int
    """a: the FFN's input is scaled by 2^-a."""
    up: int
    down: int

    def of(self, role: str) -> int:
        """The exponent of the factor on a tensor of ``role``."""
        by_role = {
            "ffn_norm": -self.norm, "router": self.norm, "ffn_gate": self.norm + self.sharpness, "ffn_up": self.up,
            "ffn_down": self.down, "ffn_gate_bias": self.sharpness, "ffn_up_bias": self.up - self.norm,
        }  # fmt: skip
        return by_role.get(role, 0)

    def keys(self) -> dict[str, Value]:
        """For the file's metadata: whoever wants the checkpoint's weights back divides by these."""
        return {f"{KEYS}.{name}": i32(value) for name, value in asdict(self).items()}


def choose_exponents(checkpoint: Checkpoint, types: TypeChoice) -> Exponents:
    """The factors for a model's weights stored as ``types``.

    With float16 in play gate must stay below its end, the scales of up's blocks above its smallest normal number, and
    K g, which some engines hold in float16, at 64 for the largest g: so K is 2^10 there, and less where gate's weights
    are over 2.

    Raises:
        TsconvertError: a weight is NaN or infinite.
    """
    if types.default in _WIDE and not types.overrides:
        return Exponents(sharpness=16, norm=0, up=-8, down=-8)
    spec = checkpoint.spec
    spread = 5 if spec.norms != "post" else 0  # what the norm before the FFN can take
    gates = (place for layer in range(spec.layers) for place in ffn_places(spec, layer, "ffn_gate"))
    room = math.floor(math.log2(_ENDS_AT / max(_largest(checkpoint, place) for place in gates)))
    sharpness = min(10, room)
    norm = min(spread, room - sharpness)
    down = -2
    return Exponents(sharpness=sharpness, norm=norm, up=norm - sharpness - down, down=down)


def _largest(checkpoint: Checkpoint, place: Place) -> float:
    return max(check(checkpoint, place), 2.0**-24)
