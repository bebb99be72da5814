"""Text to train on and to measure by: sources, tokenizer, packed rows, conversations."""
