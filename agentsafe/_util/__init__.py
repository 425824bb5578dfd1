"""Private helpers that every package may use."""
