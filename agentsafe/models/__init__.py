"""Describe, fetch, check and load checkpoints."""
