"""The line through all runs, what dominates what, and what persists."""
