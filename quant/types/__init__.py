"""Block types over ggml, and encoders of our own for the frequent ones."""
