"""Pages, made of the numbers that analysis computes."""
