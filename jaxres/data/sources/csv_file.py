"""Image lists in CSV files."""

import collections
import csv
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxres.data.sources import files, folder
from jaxres.data.splits import say_lookalikes, with_test
from jaxres.data.types import Source
from jaxres.errors import InputError, check_word, nearest
from jaxres.paths import open_regular, shorten

COLUMNS = ('path', 'label', 'split')
MAX_CSV_BYTES = 2 << 30
_BLANKS = re.compile(r'[^\S\r\n]*')  # a tab and what else is space beside the end of a line
_QUOTED = re.compile(r'[^"]*+(?:""[^"]*+)*+"')  # the rest of a quoted cell, in which two quotes are one
_PLAIN = re.compile(r'[^,]*')


def read_csv(path: str | None, seed: int, split_rule: int = 2, tested: str = 'split') -> Source:
  """Find the images that a CSV file lists.

  Args:
    path: a UTF-8 file with a header: ``path`` (from the CSV's own folder where it is relative), ``label``, and
      optionally ``split``: train, val or test. Labels are names of classes, numbered as ``sort_classes`` says. Space
      around a cell, also around its quotes, is no part of it.
    seed: of the stratified fifth of the training images that is held out where there is no test split.
    split_rule: of ``data.load``.
    tested: of ``with_test``.

  Raises:
    InputError: the file is missing or malformed, an image is missing or listed twice, or a class of val or test is
      not in train.
  """
  file = folder._check_exists(path, 'csv', 'a file with the columns path and label')
  rows = read_rows(file)
  names = files.sort_classes({row.label for row in rows if row.split == 'train'})
  if not names:
    raise InputError(file, 'it lists no training images')
  say_lookalikes(str(file), names)
  number = {label: k for k, label in enumerate(names)}
  splits: dict[str, list[Row]] = collections.defaultdict(list)
  for row in rows:
    if row.label not in number:
      problem = f'the class {shorten(row.label)!r} is in {row.split} but not in train'
      raise InputError(f'{file}:{row.line}', problem, fix=nearest(row.label, names))
    splits[row.split].append(row)
  encoded = {
    split: files.make_encoded(
      [row.path for row in rows], [number[row.label] for row in rows], [row.name for row in rows], split_rule
    )
    for split, rows in splits.items()
  }
  return with_test(encoded, names, str(file), seed, tested)


class Row(NamedTuple):
  """A row of a CSV file."""

  line: int
  path: str  # of the image
  label: str
  split: str
  name: str  # of the example: the path as it is written, less ``.`` and ``..``


def read_rows(file: pathlib.Path) -> list[Row]:
  """Return the rows of a CSV file, checked.

  Raises:
    InputError: as ``read_csv``.
  """
  try:  # a name that is not UTF-8 is a name: what lies on the disk is found by its bytes
    with io.TextIOWrapper(open_regular(file, MAX_CSV_BYTES), 'utf-8-sig', 'surrogateescape', newline='') as stream:
      reader = csv.reader(_without_blanks(stream), strict=True)
      rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
  except csv.Error as error:
    raise InputError(f'{file}:{reader.line_num}', f'not a readable CSV file: {error}') from None
  except (OSError, ValueError) as error:
    raise InputError(file, f'not a readable CSV file: {getattr(error, "strerror", None) or error}') from None
  columns = _columns(file, rows[0][1] if rows else [])
  seen: dict[str, int] = {}
  return [_row(file, line, cells, columns, seen) for line, cells in rows[1:]]


def _without_blanks(lines: Iterable[str]) -> Iterator[str]:
  """Yield ``lines`` less the space around the quotes of a cell, which Python's reader takes for a part of it."""
  is_open = False  # within a quoted cell that has an end of a line
  for line in lines:
    if '"' in line:
      line, is_open = _strip_cells(line, is_open)
    yield line


def _strip_cells(line: str, is_open: bool) -> tuple[str, bool]:
  """Return ``line`` less the space around the quotes of its cells, and whether a quoted cell is open at its end."""
  parts: list[str] = []
  at = 0
  while at < len(line):
    start = at if is_open else _end(_BLANKS, line, at)
    if is_open or line.startswith('"', start):
      closing = _QUOTED.match(line, start if is_open else start + 1)
      if closing is None:
        return ''.join([*parts, line[start:]]), True
      at, is_open = closing.end(), False
      parts.append(line[start:at])
      after = _end(_BLANKS, line, at)
      at = after if line[after : after + 1] in ('', ',', '\r', '\n') else at
    stop = _end(_PLAIN, line, at) + 1
    parts.append(line[at:stop])
    at = stop
  return ''.join(parts), is_open


def _end(pattern: re.Pattern[str], line: str, at: int) -> int:
  """Return where what ``pattern`` matches at a place of ``line`` ends; there, where it matches nothing."""
  match = pattern.match(line, at)
  return match.end() if match else at


def _columns(file: pathlib.Path, header: list[str]) -> list[str]:
  """Return the names of the columns, of which those that are known count, in any case of letters."""
  if any(map(_is_no_text, header)):
    raise InputError(file, 'not a readable CSV file: its first line is no UTF-8 text', fix='save it as UTF-8')
  columns = [name.lower() if name.lower() in COLUMNS else name for name in header]
  if not set(COLUMNS[:2]) <= set(columns):
    names = shorten(', '.join(map(repr, header))) or 'none'
    raise InputError(file, expected='the columns path, label and optionally split, separated by commas', found=names)
  twice = [name for name in COLUMNS if columns.count(name) > 1]
  if twice:
    raise InputError(file, f'{columns.count(twice[0])} columns are called {twice[0]}', expected='one')
  return columns


def _is_no_text(cell: str) -> bool:
  return '\0' in cell or any('\ud800' <= character <= '\udfff' for character in cell)


def _row(file: pathlib.Path, line: int, row: list[str], columns: list[str], seen: dict[str, int]) -> Row:
  if len(row) > len(columns):
    problem = f'{len(row)} cells, and the header has {len(columns)}'
    raise InputError(f'{file}:{line}', problem, fix='quote a cell that has a comma: "a, b"')
  cells = dict.fromkeys(COLUMNS, '') | dict(zip(columns, row, strict=False))
  if not cells['path'] or not cells['label']:
    raise InputError(f'{file}:{line}', f'no {"path" if cells["label"] else "label"}')
  split = cells['split'] or 'train'
  check_word(f'{file}:{line}', shorten(split), files.SPLITS, 'split')
  path = os.path.normpath(file.parent / cells['path'])
  if not os.path.isfile(path):
    raise InputError(f'{file}:{line}', f'{_why_no_file(path)}: {shorten(path)}')
  if path in seen:
    raise InputError(f'{file}:{line}', f'{cells["path"]} is listed in line {seen[path]} too')
  seen[path] = line
  return Row(line, path, cells['label'], split, pathlib.Path(os.path.normpath(cells['path'])).as_posix())


def _why_no_file(path: str) -> str:
  try:
    os.stat(path)
  except FileNotFoundError:
    return 'no such file'
  except ValueError:  # a null byte
    return 'no path of a file'
  except OSError as error:
    return f'cannot be read: {error.strerror}'
  return 'no regular file'
