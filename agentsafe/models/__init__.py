"""Checkpoints: how they are described, fetched, checked and loaded."""
