"""Models and their checkpoints: families, spec, tensor names, reading, writing, layers, the sweep."""
