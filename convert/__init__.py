"""The checkpoint: what it is, how it is read and written, and how SwiGLU becomes dReLU."""
