"""Chat models: what serves a checkpoint or a server to an agent, an emulator or a judge."""
