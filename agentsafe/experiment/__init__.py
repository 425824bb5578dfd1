"""Check a config, and list the checkpoints, settings and files of its run."""
