"""A checkpoint's tokenizer as the keys of a GGUF file."""
