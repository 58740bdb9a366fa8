"""Numbers and arrays from trained networks; no pages."""
