"""Prompts as Jinja templates, which a user may replace."""
