"""Share private helpers between packages."""
