"""Numbers and arrays from trained networks and from training steps; no pages."""
