"""Pages; no numbers of their own."""
