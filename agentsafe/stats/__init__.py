"""Statistics that know nothing of the experiment: regression, linear programs, bootstrap."""
