"""The worlds: what cases and toolkits there are."""
