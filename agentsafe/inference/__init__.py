"""Chat models: serve a checkpoint or a remote model to agents, emulators and judges."""
