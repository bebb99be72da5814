"""Importance matrices: collected in the layer sweep, and as files in llama.cpp's form."""
