"""GGUF files from checkpoints (export.py) and from other GGUF files (quantize.py)."""
