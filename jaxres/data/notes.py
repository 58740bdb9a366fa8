"""What reading and preparing data has to say: lines on standard error."""

import sys

from jaxres.errors import printable


def say(line: str) -> None:
  """Print a line on standard error."""
  print(printable(line), file=sys.stderr, flush=True)
