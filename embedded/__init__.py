"""The embedded models, package data: trained by examples/pretrain_tiny.py, each with its card and licence."""

from pathlib import Path

NAMES = ("tiny-mistral", "tiny-mixtral")
_HERE = Path(__file__).parent


def folder(name: str) -> Path:
    """The checkpoint folder of an embedded model, one of NAMES."""
    return _HERE / name


def text(name: str) -> Path:
    """An embedded text: `train.txt` (seen by the embedded models) or `heldout.txt` (never trained on)."""
    return _HERE / "text" / name
