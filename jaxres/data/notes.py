"""What reading and preparing data has to say: lines on standard error."""

import sys
import time
from collections.abc import Callable

from jaxres.errors import printable


def say(line: str) -> None:
  """Print a line on standard error."""
  print(printable(line), file=sys.stderr, flush=True)


def make_teller(what: str, seconds: float, *, at_once: bool = False) -> Callable[[str], None]:
  """Return a function that says how far a long work is: lines on standard error, some time apart.

  Args:
    what: is done; leads each line.
    seconds: from a line to the next, and to the first where that is not ``at_once``.
    at_once: the first line is said when there is one.
  """
  last = time.monotonic() - seconds * at_once

  def tell(line: str) -> None:
    nonlocal last
    if time.monotonic() - last >= seconds:
      last = time.monotonic()
      say(f'{what} {line}')

  return tell
