"""Checkpoints act on cases, step by step, in an emulated world."""
