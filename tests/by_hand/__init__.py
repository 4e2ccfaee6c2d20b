"""Long comparisons and soaks, run by hand."""
