"""Labels of test cases into cells, and cells into points."""
