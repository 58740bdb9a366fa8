"""``metrics.jsonl``: the rows of a run's log, read whatever became of the file, which never stops a run."""

import math
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from jaxres import files

MAX_BYTES = 256 << 20  # a million rows
MAX_LINE = 1 << 16
MAX_VALUE = 3.5e38  # a metric is a float32
MAX_STEP = 2**31 - 1


class Line(NamedTuple):
  """A line of the log: its place, its text, and its row or what is wrong with it."""

  number: int
  text: bytes
  row: dict[str, float]  # its finite numbers; empty where it is damaged
  problem: str = ''


def read(path: pathlib.Path) -> tuple[list[dict[str, float]], str]:
  """Return the rows of ``path`` that can be read, and one line on the rest; empty where all is well.

  A missing file has no rows; nor has one that is cut off within its last line, as by a kill, that line. What is no
  finite number is left out of its row.
  """
  try:
    lines = [*_lines(path, ('step', 'epoch'))]
  except FileNotFoundError:
    return [], ''
  except OSError as error:
    return [], f'{path}: cannot be read: {error.strerror or error}; it is left out'
  return [line.row for line in lines if line.row], describe_damage(path, lines)


def cut(path: pathlib.Path, last_step: int) -> tuple[list[dict[str, float]], str]:
  """Drop the rows of ``path`` behind ``last_step`` and the damaged ones; return what ``read`` does of the rest.

  Nothing is lost by damage: the file as it was is kept beside it then, and the line on it says where.

  Raises:
    OSError: nothing can be written there.
  """
  try:
    lines = [*_lines(path, ('step',))]
  except FileNotFoundError:
    lines = []
  except OSError as error:
    return [], f'{path}: cannot be read: {error.strerror or error}; the log starts over; {_put_aside(path)}'
  damage = describe_damage(path, lines)
  kept = [line for line in lines if line.row and line.row['step'] <= last_step]
  damage = damage and f'{damage}; {_put_aside(path)}'
  files.write_atomic(path, ''.join(line.text.decode() + '\n' for line in kept))
  return [line.row for line in kept], damage


def describe_damage(path: pathlib.Path, lines: list[Line]) -> str:
  """Return one line on the damaged ones among ``lines``; empty where there are none."""
  damaged = [line for line in lines if line.problem]
  if not damaged:
    return ''
  numbers = ', '.join(f'{line.number:,}' for line in damaged[:5])
  more = f' and {len(damaged) - 5:,} more' if len(damaged) > 5 else ''
  expected = 'expected an object with step and epoch'
  return f'{path}: left out: line {numbers}{more}: {damaged[0].problem}; {expected}'


def _lines(path: pathlib.Path, needed: Collection[str]) -> Iterator[Line]:
  """Yield the lines that are not blank, without their ends; a last one without an end only where it is complete.

  A row has all that is ``needed`` of it.

  Raises:
    OSError: the file is missing, cannot be read, is too large or no regular file.
  """
  texts = files.read_bytes(path, MAX_BYTES).split(b'\n')
  for number, text in enumerate(texts, 1):
    line = _parse(number, text.strip().removeprefix(b'\xef\xbb\xbf'), needed)  # an editor may write the mark
    unfinished = number == len(texts) and line.text.startswith(b'{')
    if line.text and (line.row or not unfinished):
      yield line


def _parse(number: int, text: bytes, needed: Collection[str]) -> Line:
  if len(text) > MAX_LINE:
    return Line(number, text, {}, f'it has {len(text):,} bytes')
  try:
    content = files.parse_json(text, finite=False) if text else None
  except ValueError as error:
    return Line(number, text, {}, f'{error}')
  if not isinstance(content, dict):
    return Line(number, text, {}, 'it is no object')
  row = {name: value for name, value in content.items() if _is_metric(value)}
  missing = [name for name in needed if name not in row]
  if missing:
    return Line(number, text, {}, f'its {missing[0]} is missing or no number')
  if type(row['step']) is not int or not 0 <= row['step'] <= MAX_STEP:
    return Line(number, text, {}, f'its step is {row["step"]:.6g}')
  return Line(number, text, row)


def _is_metric(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_VALUE


def _put_aside(path: pathlib.Path) -> str:
  """Put ``path`` aside; return where it is."""
  names = (path.with_name(f'{path.name}.bad{number or ""}') for number in range(10_000))
  aside = next(name for name in names if not os.path.lexists(name))
  os.replace(path, aside)
  return f'as it was: {aside}'
