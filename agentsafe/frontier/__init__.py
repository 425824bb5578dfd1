"""The safety/helpfulness frontier: the line through all runs, dominance, persistence."""
