"""Preference pairs and a parent checkpoint into a trained checkpoint."""
