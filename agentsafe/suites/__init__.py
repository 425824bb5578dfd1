"""Suites: cases, toolkits and their files."""
