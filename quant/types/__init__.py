"""Block types: ggml's library, vectorised encoders of our own, and which tensor gets which type."""
