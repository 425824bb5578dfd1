"""Render prompts from Jinja templates, which users can replace with their own."""
