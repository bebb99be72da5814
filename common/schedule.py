"""The learning rate's course over a training."""

import math


def schedule(step: int, steps: int) -> float:
    """The share, 0 to 1, of the peak learning rate: a linear rise over 5 % of ``steps``, then a cosine down to 0."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
