"""Reading GGUF files: the container, ggml's block types, and what a file says as a Hugging Face folder would."""
