"""Figures, tables and the page that a run ends in."""
