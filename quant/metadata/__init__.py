"""The metadata of a GGUF file and the model card beside it: shape, rope, where the model comes from."""
