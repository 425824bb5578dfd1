"""Roll out checkpoints on cases in emulated worlds, and audit the rollouts."""
