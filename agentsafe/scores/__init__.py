"""Scores of checkpoints: cells from labels of test cases, and points from cells."""
