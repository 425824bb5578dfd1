"""What a config asks for, checked before anything runs."""
