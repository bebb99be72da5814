"""The sparse engine: GGUF files run on the CPU, dense, exact or predicted."""
