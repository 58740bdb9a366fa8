"""Bad input: one exception, one line, one exit code."""

import contextlib
import difflib
import itertools
import math
import numbers
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

MAX_WORD, MAX_LISTED = 100, 1000  # characters, of a word that is compared, and of all that are listed
_NEWLINES = re.compile(r'[ \t]*[\r\n][ \t\r\n]*')
_ACTIVE = ('Cc', 'Cs', 'Zl', 'Zp')  # Unicode's controls, surrogates, separators of lines and of paragraphs
_BIDIRECTIONAL = ('LRE', 'RLE', 'LRO', 'RLO', 'PDF', 'LRI', 'RLI', 'FSI', 'PDI')
_MARKS = '\u061c\u200e\u200f\ufeff'  # that turn what is beside them around, or show nothing
_SHORT = {'\n': r'\n', '\r': r'\r', '\t': r'\t'}


class InputError(ValueError):
  """The user's input is wrong: its text is one line that says where, what is wrong and how to fix it.

  The line is ``field: problem; fix``, or ``field: expected ..., found ...; fix``; what is not given is left out.

  Args:
    field: what is wrong: a field of the config, a flag, an argument, a file.
    problem: in words, where expected and found do not say it.
    expected: what would be right.
    found: what is there, as it is to be printed: the ``repr`` of a word that a person wrote.
    fix: what to do about it.

  Attributes:
    field, problem, expected, found, fix: as they were given, as text.
  """

  def __init__(
    self, field: object, problem: object = '', *, expected: object = '', found: object = None, fix: str = ''
  ) -> None:
    self.field, self.problem, self.expected = str(field), str(problem), str(expected)
    self.found, self.fix = '' if found is None else str(found), fix
    values = [f'expected {self.expected}'] if self.expected else []
    values += [f'found {self.found}'] if self.found else []
    what = '; '.join(filter(None, (self.problem, ', '.join(values))))
    line = '; '.join(filter(None, (': '.join(filter(None, (self.field, what))), fix)))
    super().__init__(_NEWLINES.sub(' ', line))  # of an array, or of what another library says


def check_range(
  field: str,
  value: float | None,
  *,
  low: float | None = None,
  above: float | None = None,
  high: float | None = None,
  below: float | None = None,
  unit: str = '',
) -> None:
  """Check that a number is finite and in a range.

  Args:
    field: that has it, such as ``'optim.lr'``.
    value: the number; None, which stands for the default, is right.
    low: the smallest value; or ``above``, what all values are greater than.
    above: see ``low``.
    high: the largest value; or ``below``, what all values are less than.
    below: see ``high``.
    unit: of the number, such as ``'pixels'``.

  Raises:
    InputError: it is no number, not in the range, infinite, or NaN.
  """
  if value is None:
    return
  if not isinstance(value, numbers.Real):
    raise InputError(field, expected=f'a number{f" of {unit}" if unit else ""}', found=f'{value!r:.80}')
  start, end = low if above is None else above, high if below is None else below
  is_high_enough = start is None or value > start or value == low
  is_low_enough = end is None or value < end or value == high
  if is_high_enough and is_low_enough and math.isfinite(value):
    return
  if end is None:
    span = f'{start} or more' if above is None else f'more than {start}'
  elif start is None:
    span = f'at most {end}' if below is None else f'less than {end}'
  else:
    span = f'a value in {"[" if above is None else "("}{start}, {end}{"]" if below is None else ")"}'
  kind = unit or ('a finite number' if math.isinf(value) else '')
  raise InputError(field, expected=f'{kind}, {span}' if kind else span, found=value)


def check_word(field: str, word: object, known: Iterable[object], kind: str = 'value') -> None:
  """Check that a word is one of those that are known.

  Args:
    field: that has it, such as ``'optim.name'``.
    word: what the user wrote; None is right where it is known.
    known: the words, and None where none is right too.
    kind: what it names, such as ``'optimizer'``.

  Raises:
    InputError: it is not; names the nearest.
  """
  words = list(known)
  is_word = word is None or isinstance(word, str | int)  # of an array, == has many answers
  if not is_word or word not in words:
    fix = nearest(word, [each for each in words if each is not None])
    raise InputError(field, f'unknown {kind} {word!r:.{MAX_WORD}}', fix=fix)


def nearest(word: object, known: Iterable[object]) -> str:
  """Return ``"did you mean 'x'?"``, or the known words where none is near ``word``.

  Args:
    word: what the user wrote.
    known: what could have been written.

  Returns:
    The end of a sentence; empty where nothing is known. Of very many words it has some.
  """
  options = sorted(str(option) for option in known)
  close = difflib.get_close_matches(str(word)[:MAX_WORD], [o for o in options if len(o) <= MAX_WORD], n=1)
  if close:
    return f'did you mean {close[0]!r}?'
  lengths = itertools.accumulate(min(len(option), MAX_WORD) + 2 for option in options)
  listed = [option[:MAX_WORD] for option, length in zip(options, lengths, strict=True) if length <= MAX_LISTED]
  rest = f' and {len(options) - len(listed):,} more' if len(listed) < len(options) else ''
  return f'known: {", ".join(listed)}{rest}' if options else ''


def printable(text: object, keep: str = '') -> str:
  r"""Return ``text`` so that showing it does nothing else: what acts on a terminal or a page is escaped as Python does.

  These are control characters, with ESC, and what changes the direction of writing; bytes of a file's name that are
  not UTF-8, which Python has as lone surrogates, become ``\xe9``. All else is as it was, a backslash too.

  Args:
    text: of any kind, such as a path.
    keep: characters that are left as they are.
  """
  text = str(text)
  if text.isascii() and text.isprintable():
    return text
  return ''.join(c if c in keep or not _acts(c) else _escape(c) for c in text)


def _acts(character: str) -> bool:
  if character in _MARKS or unicodedata.category(character) in _ACTIVE:
    return True
  return unicodedata.bidirectional(character) in _BIDIRECTIONAL


def _escape(character: str) -> str:
  code = ord(character)
  if character in _SHORT:
    return _SHORT[character]
  if 0xDC80 <= code <= 0xDCFF:  # a byte of a name, by PEP 383
    code -= 0xDC00
  return f'\\x{code:02x}' if code < 0x100 else f'\\u{code:04x}'


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
  print(printable(prefix + _NEWLINES.sub(' ', message.strip(' \r\n'))), file=sys.stderr)
  raise SystemExit(status)


def print_status(line: str) -> None:
  """Print a line on standard error."""
  print(printable(line), file=sys.stderr, flush=True)


def make_progress_printer(what: str, seconds: float, *, at_once: bool = False) -> Callable[[str], None]:
  """Return a function that says how far a long work is: lines on standard error, some time apart.

  Args:
    what: is done; leads each line.
    seconds: from a line to the next, and to the first where that is not ``at_once``.
    at_once: print the first line when there is one.
  """
  last = time.monotonic() - seconds * at_once

  def tell(line: str) -> None:
    nonlocal last
    if time.monotonic() - last >= seconds:
      last = time.monotonic()
      print_status(f'{what} {line}')

  return tell
