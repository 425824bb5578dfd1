"""Prompts as Jinja templates, which users can replace with their own."""
