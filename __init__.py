"""tsconvert: dense Mistral and Mixtral checkpoints to sparse dReLU models that PowerInfer and its own runner run."""

__version__ = "0.1.0"
