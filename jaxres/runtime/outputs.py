"""Standard input, output and errors as they may be: closed, full, on a terminal that is gone, of ASCII alone."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from jaxres.errors import exit_with, print_status

CLOSED_STATUS = 141  # of what wrote to a pipe that nobody reads, as a shell shows SIGPIPE


class Output(io.FileIO):
  """A descriptor that drops what cannot be written, and tells of it once."""

  def __init__(self, number: int, tell: Callable[[OSError], None]):
    """Write to the descriptor ``number``; ``tell`` is called at the first error, and may raise SystemExit."""
    super().__init__(number, 'w', closefd=False)
    self._tell = tell

  def write(self, data: Any, /) -> int:
    """Write ``data`` as a file does, or drop it."""
    try:
      return super().write(data)
    except OSError as error:
      devnull = os.open(os.devnull, os.O_WRONLY)
      os.dup2(devnull, self.fileno())  # from now on nothing fails, whoever writes
      os.close(devnull)
      self._tell(error)
      return memoryview(data).nbytes


def guard(*, needed: bool) -> None:
  """Replace the standard streams by ones that no closed pipe, full disk or strict encoding can break.

  Args:
    needed: the program is there for its output, and ends where that cannot be written: quietly with 141 where nobody
      reads it any more, else with 1 and one line. Otherwise it says so once, and goes on.
  """
  for number in range(3):
    _fill(number)
  sys.stderr = _stream(sys.stderr, 2, lambda _: None)
  sys.stdout = _stream(sys.stdout, 1, _end if needed else _warn)


def _fill(number: int) -> None:
  """Open /dev/null as a standard descriptor that is closed: the next file would get its number, and all that prints."""
  try:
    os.fstat(number)
  except OSError:
    os.open(os.devnull, os.O_RDWR)  # which takes the lowest number


def _stream(old: TextIO | None, number: int, tell: Callable[[OSError], None]) -> TextIO:
  encoding = 'utf-8' if old is None else old.encoding
  buffer = io.BufferedWriter(Output(number, tell))
  lines = number == 2 or buffer.isatty()
  return io.TextIOWrapper(buffer, encoding, errors='backslashreplace', line_buffering=lines)


def _warn(error: OSError) -> None:
  print_status(f'the output cannot be written any more: {error.strerror}; the training goes on without it')


def _end(error: OSError) -> None:
  if isinstance(error, BrokenPipeError):
    raise SystemExit(CLOSED_STATUS)
  exit_with(f'the output cannot be written: {error.strerror}', 1)
