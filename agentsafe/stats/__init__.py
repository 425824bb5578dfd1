"""Statistics without the experiment: regression, linear programs, bootstrap."""
