"""What a model is and where it lies: spec, tensor names, checkpoints, layers, the sweep."""
