"""What reading and preparing data has to say: lines on standard error."""

import sys


def say(line: str) -> None:
  """Print a line on standard error."""
  print(line, file=sys.stderr, flush=True)
