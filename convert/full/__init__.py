"""Recovery of the whole model, by transformers' Trainer."""
