"""The files of a checkpoint: where they lie, what is in them, whether they are whole, and writing them."""
