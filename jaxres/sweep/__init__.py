"""Several runs of one config."""
