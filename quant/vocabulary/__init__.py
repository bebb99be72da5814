"""Vocabularies as GGUF has them."""
