"""Knowing what a conversion did: perplexity, checks, reports; and conversions that do it all."""
