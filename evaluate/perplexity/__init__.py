"""`tsconvert eval`: perplexity, density and divergence."""
