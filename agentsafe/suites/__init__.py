"""Define suites of cases and toolkits, and read and download their files."""
