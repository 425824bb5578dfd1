"""Private helpers, one noun each."""
