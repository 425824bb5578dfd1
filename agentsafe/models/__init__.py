"""Checkpoints: describe, fetch, check and load them."""
