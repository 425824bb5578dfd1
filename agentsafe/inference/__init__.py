"""Serve chat models, from checkpoints or from a server, to agents, emulators and judges."""
