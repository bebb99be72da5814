"""Knowing what a conversion did: perplexity, checks, reports, and the demo."""
