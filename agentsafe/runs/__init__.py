"""A run of the workflow: its jobs, locks, plan, status and pictures."""
