"""The engines that files are written for: the keys and tensors that each takes, and the models that it refuses."""
