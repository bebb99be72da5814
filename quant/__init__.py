"""Block types over ggml, GGUF files, and the targets that they are written for."""
