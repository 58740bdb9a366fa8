"""Making data sets ready to read."""
