"""How fast a file runs, and a shape that nobody has a file of yet."""
