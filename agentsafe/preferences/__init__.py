"""Build preference pairs from labels, and training sets from pairs."""
