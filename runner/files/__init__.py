"""GGUF files as the runner sees them, whatever dialect they are in."""
