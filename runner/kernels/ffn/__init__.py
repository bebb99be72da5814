"""The FFN half of a layer."""
