"""The compiled step and the kernels that it is made of."""
