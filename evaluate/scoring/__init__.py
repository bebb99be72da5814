"""Models as scorers: logits of windows of text, from checkpoints and GGUF files."""
