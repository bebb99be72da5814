"""K-quant encoders that work on many super-blocks at once."""
