"""Bad input: one exception, one line, one exit code."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn


class InputError(ValueError):
  """The user's input is wrong: the message is one line that says what, where and how to fix it."""


def nearest(word: object, known: Iterable[object]) -> str:
  """Return ``"; did you mean 'x'?"``, or the known words where none is near ``word``.

  Args:
    word: what the user wrote.
    known: what could have been written.

  Returns:
    The end of a sentence, with its leading punctuation; empty where nothing is known.
  """
  options = sorted(str(option) for option in known)
  close = difflib.get_close_matches(str(word), options, n=1)
  if close:
    return f'; did you mean {close[0]!r}?'
  return f'; known: {", ".join(options)}' if options else ''


@contextlib.contextmanager
def one_line(*, debug: bool = False, interrupted: str = 'interrupted') -> Iterator[None]:
  """End the program with one line on standard error where the user's input is wrong, or where they interrupt it.

  The exit status is 2 for an ``InputError`` and 130 for Ctrl-C.

  Args:
    debug: show the traceback of an ``InputError``.
    interrupted: what to say after Ctrl-C.
  """
  try:
    yield
  except InputError as error:
    if debug:
      raise
    exit_with(str(error), 2)
  except KeyboardInterrupt:
    exit_with(interrupted, 130, prefix='')


def exit_with(message: str, status: int, prefix: str = 'error: ') -> NoReturn:
  """Print ``message`` as one line on standard error and exit."""
  print(prefix + ' '.join(message.split()), file=sys.stderr)
  raise SystemExit(status)
