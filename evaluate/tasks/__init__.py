"""Accuracy tasks through lm-eval."""
