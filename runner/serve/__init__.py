"""A GGUF file behind the OpenAI-compatible API, for many clients: `tsconvert serve`."""
