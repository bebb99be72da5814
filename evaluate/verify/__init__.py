"""`tsconvert verify`: a GGUF file against the checkpoint that it was made from."""
