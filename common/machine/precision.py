"""Whether matrix products are fast in bfloat16 on a device, and how fast they are."""

import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear, silu

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
_TOKENS = 1024
_MOST_WEIGHTS = 1 << 22  # of a matrix in `training_rate`: a part of a wide FFN is as fast as all of it
_HALVED_WIDTH = 300  # at which the rest of a model, with its small operations, takes as much time again


def multiplies_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 instructions; without them torch emulates, slower than float32."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in _INSTRUCTIONS)


def product_rate(device: str, *, bfloat16: bool) -> float:
    """Floating-point operations a second of a matrix product, measured for a fifth of a second."""
    kind = torch.bfloat16 if bfloat16 else torch.float32
    size = 1024
    left, right = (torch.ones(size, size, dtype=kind, device=device) for _ in range(2))
    return 2 * size**3 * _times_a_second(lambda: float((left @ right)[0, 0]))


def training_rate(width: int, neurons: int, device: str, *, bfloat16: bool) -> float:
    """Floating-point operations a second of training such a model.

    Measured for a fifth of a second there and back through its SwiGLU FFN, for what lies between the products counts:
    beside units as fast as AMX's it takes half of the time. SmolLM2 on two cores: 274 to 325 tokens/s expected, 243 to
    315 found.
    """
    neurons = min(neurons, max(1, _MOST_WEIGHTS // width))
    shapes = ((neurons, width), (neurons, width), (width, neurons))
    gate, up, down = (torch.full(shape, shape[1] ** -0.5, device=device, requires_grad=True) for shape in shapes)
    x = torch.ones(_TOKENS, width, device=device, requires_grad=True)

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
            out = linear(silu(linear(x, gate)) * linear(x, up), down)
        slopes = torch.autograd.grad(out.float().sum(), (gate, up, down, x))
        float(slopes[-1][0, 0])

    rate = 18 * _TOKENS * width * neurons * _times_a_second(step)
    return rate * width / (width + _HALVED_WIDTH)


def _times_a_second(step: Callable[[], object]) -> float:
    """How often ``step`` is done in a second, of a fifth of one, after a first time."""
    step()
    start_s, done = time.perf_counter(), 0
    while time.perf_counter() - start_s < 0.2:
        step()
        done += 1
    return done / (time.perf_counter() - start_s)
