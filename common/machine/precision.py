"""Whether matrix products are fast in bfloat16 on a device, and how fast they are."""

import time

import torch

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


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
    float((left @ right)[0, 0])
    start_s, done = time.perf_counter(), 0
    while time.perf_counter() - start_s < 0.2:
        float((left @ right)[0, 0])
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - start_s)
