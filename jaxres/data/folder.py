"""Image files: a folder with one sub-folder per class, or a CSV of paths and labels."""

import collections
import csv
import io
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxres.data import decode, listing
from jaxres.data.arrays import Encoded, Source
from jaxres.data.listing import SUFFIXES
from jaxres.data.notes import say
from jaxres.data.splits import with_test
from jaxres.errors import InputError, nearest
from jaxres.paths import open_regular, read_regular, user_path

SPLITS = ('train', 'val', 'test')
COLUMNS = ('path', 'label', 'split')
MAX_CSV_BYTES = 2 << 30


def read_folder(path: str | None, seed: int, split_rule: int = 2) -> Source:
  """Find the images of a folder, as ``find`` does, and hold a test split out where there is none.

  Args:
    path: the folder.
    seed: of the stratified fifth of the training images that is held out where there is no test split.
    split_rule: of ``data.loader``.

  Raises:
    InputError: as ``find``.
  """
  splits, names = find(path, split_rule)
  return with_test(splits, names, str(path), seed)


def find(path: str | None, split_rule: int = 2) -> tuple[dict[str, Encoded], tuple[str, ...]]:
  """Find the images of ``path/class/*``, or ``path/train/class/*`` and beside it ``val`` and ``test``.

  Args:
    path: the folder. A class is called as its folder and numbered as ``sort_classes`` says. Hidden files, and files
      that are not called as images, are left out.
    split_rule: 2; or 1, for a run of an older jaxres: classes by the alphabet, no TIFF, and examples without names.

  Returns:
    The splits, of which train is one, and the names of the classes.

  Raises:
    InputError: there is no such folder, a class has no images, most images lie too deep or are links to nothing, or the
      splits have different classes.
  """
  root = _existing(path, 'folder', 'a folder with one sub-folder of images per class')
  splits = {name: root / name for name in SPLITS if _folders(root / name)}
  if not splits:
    names, files = _classes(root, root, split_rule)
    if set(map(str.lower, names)) <= set(SPLITS):
      layout = f'the sub-folders are {", ".join(names)}, with images directly in them'
      raise InputError(f'{root}: {layout}; expected a sub-folder per class, in train, val and test or without them')
    return {'train': files}, names
  _say_loose(root)
  flat = [name for name in SPLITS if name not in splits and (root / name).is_dir()]
  if flat:
    say(f'{root / flat[0]} has no sub-folder per class and is left out')
  odd = [folder.name for folder in _folders(root) if folder.name not in splits and _folders(folder)]
  odd = [name for name in odd if name.lower().startswith(SPLITS)]  # what else is there is not asked for
  if odd:
    raise InputError(f'{root}: {odd[0]!r} is no split{nearest(odd[0], SPLITS)}')
  if 'train' not in splits:
    raise InputError(f'{root}: there is {" and ".join(splits)} but no train folder with a sub-folder per class')
  found = {name: _classes(root, folder, split_rule) for name, folder in splits.items()}
  names = found['train'][0]
  for split, (others, _) in found.items():
    for missing, here, there in (
      (set(others) - set(names), split, 'train'),
      (set(names) - set(others), 'train', split),
    ):
      if missing:
        raise InputError(f'{root}: the class {min(missing)!r} is in {here} but not in {there}; expected equal classes')
  return {split: files for split, (_, files) in found.items()}, names


def read_csv(path: str | None, seed: int, split_rule: int = 2) -> Source:
  """Find the images that a CSV file lists.

  Args:
    path: a UTF-8 file with a header: ``path`` (from the CSV's own folder where it is relative), ``label``, and
      optionally ``split``: train, val or test. Labels are names of classes, numbered as ``sort_classes`` says. Space
      around a cell, also around its quotes, is no part of it.
    seed: of the stratified fifth of the training images that is held out where there is no test split.
    split_rule: of ``data.loader``.

  Raises:
    InputError: the file is missing or malformed, an image is missing or listed twice, or a class of val or test is
      not in train.
  """
  file = _existing(path, 'csv', 'a file with the columns path and label')
  rows = read_rows(file)
  names = sort_classes({row.label for row in rows if row.split == 'train'})
  if not names:
    raise InputError(f'{file}: it lists no training images')
  _say_lookalikes(file, names)
  number = {label: k for k, label in enumerate(names)}
  splits: dict[str, list[Row]] = collections.defaultdict(list)
  for row in rows:
    if row.label not in number:
      missing = f'the class {row.label!r} is in {row.split} but not in train{nearest(row.label, names)}'
      raise InputError(f'{file}:{row.line}: {missing}')
    splits[row.split].append(row)
  encoded = {
    split: _files(
      [row.path for row in rows], [number[row.label] for row in rows], [row.name for row in rows], split_rule
    )
    for split, rows in splits.items()
  }
  return with_test(encoded, names, str(file), seed)


def sort_classes(names: Iterable[str], split_rule: int = 2) -> tuple[str, ...]:
  """Return the names of classes in the order of their labels: by value where all are integers, else by the alphabet.

  Args:
    names: each once.
    split_rule: 2; 1 is by the alphabet always, as folders were once read.
  """
  by_value = split_rule > 1 and all(re.fullmatch(r'-?[0-9]+', name) for name in names)
  return tuple(sorted(names, key=lambda name: (int(name), name) if by_value else (0, name)))


def _existing(path: str | None, name: str, what: str) -> pathlib.Path:
  if not path:
    raise InputError(f'data.path: data.name={name!r} reads {what}; give its path')
  found = user_path(path, 'data.path')
  if name != 'folder' and found.is_dir():
    raise InputError(f'data.path: {path} is a folder; expected {what}, or set data.name=folder')
  if not (found.is_dir() if name == 'folder' else found.exists()):
    raise InputError(f'data.path: no such {"folder" if name == "folder" else "file"}: {path}; expected {what}')
  return found


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  """Return the sub-folders by name, less the hidden ones; none where there is no such folder."""
  if not path.is_dir():
    return []
  return sorted(sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith('.'))


def _classes(top: pathlib.Path, root: pathlib.Path, split_rule: int) -> tuple[tuple[str, ...], Encoded]:
  """Return the names of the classes in ``root`` and their images, in the order of class and file name.

  Args:
    top: what examples are named from, ``root`` or the folder that it is a split of.
    root: the folder with a sub-folder for each class.
    split_rule: of ``find``.
  """
  classes = {folder.name: folder for folder in _folders(root)}
  if not classes:
    files = sum(path.is_file() for path in root.iterdir())
    raise InputError(f'{root}: expected a sub-folder of images per class, found none (and {files} files)')
  if set(map(str.lower, classes)) <= set(SPLITS) and not any(map(_holds_files, classes.values())):
    folders = ', '.join(classes)
    raise InputError(f'{root}: the sub-folders are {folders}; splits are called {", ".join(SPLITS)}, in lower case')
  if top == root:
    _say_loose(root)
  names = sort_classes(classes, split_rule)
  listings = [listing.look(classes[name]) for name in names]
  images = [_known(found.images, split_rule) for found in listings]
  left_out = [_left_out(found) for found in listings]
  for name, found, kept, lost in zip(names, listings, images, left_out, strict=True):
    if not kept or (split_rule > 1 and len(lost) >= len(kept)):
      raise InputError(_too_few(classes[name], found, kept, lost))
  _say_left_out(root, listings, images, left_out)
  paths = [path for kept in images for path in kept]
  labels = [label for label, kept in enumerate(images) for _ in kept]
  return names, _files(paths, labels, [pathlib.Path(os.path.relpath(p, top)).as_posix() for p in paths], split_rule)


def _known(paths: list[str], split_rule: int) -> list[str]:
  """Return the images that the rule knows: the first knew no TIFF."""
  return paths if split_rule > 1 else [path for path in paths if not path.lower().endswith(('.tif', '.tiff'))]


def _left_out(found: listing.Listing) -> list[str]:
  """Return what of a class's folder looks like its images and is not taken: links to nothing, and what lies deeper."""
  deeper = [path for folder in found.folders for inner in listing.walk(folder) for path in inner.images]
  return [*found.broken, *deeper]


def _too_few(folder: pathlib.Path, found: listing.Listing, kept: list[str], lost: list[str]) -> str:
  """Return what is wrong with the folder of a class that has no images, or more that are left out."""
  if not lost:
    return f'{folder}: no images: expected files that end in {", ".join(SUFFIXES)}, found {len(found.others)} others'
  problems = [
    f'{len(found.broken)} are links to nothing or no files: repair or remove them' * bool(found.broken),
    f'{len(lost) - len(found.broken)} lie in its sub-folders: move them up into it, or elsewhere'
    * (len(lost) > len(found.broken)),
  ]
  counts = f'{len(kept)} images are directly in it and {len(lost)} are left out, such as {lost[0]}'
  return f'{folder}: {counts}: {"; ".join(filter(None, problems))}'


def _say_left_out(
  root: pathlib.Path, listings: Sequence[listing.Listing], images: Sequence[list[str]], left_out: Sequence[list[str]]
) -> None:
  """Say what of the classes in ``root`` is not taken."""
  broken = [path for found in listings for path in found.broken]
  deeper = [path for found, lost in zip(listings, left_out, strict=True) for path in lost[len(found.broken) :]]
  unknown = [path for found, kept in zip(listings, images, strict=True) for path in {*found.images} - {*kept}]
  others = [path for found in listings for path in found.others] + unknown
  for paths, what in (
    (others, 'files are no images by their names'),
    (broken, 'images are links to nothing, or no files,'),
    (deeper, 'images are in sub-folders of a class'),
  ):
    if paths:
      say(f'{root}: {len(paths)} {what} and left out, such as {min(paths)}')


def _say_loose(root: pathlib.Path) -> None:
  """Say which images lie beside the folders that should hold them."""
  loose = listing.look(root).images
  if loose:
    say(f'{root}: {len(loose)} images are in no folder of a class and left out, such as {loose[0]}')


def _holds_files(folder: pathlib.Path) -> bool:
  return any(path.is_file() for path in folder.iterdir())


def _files(paths: Sequence[str], labels: Sequence[int], names: Sequence[str], split_rule: int) -> Encoded:
  def read(index: int) -> bytes:
    return read_regular(paths[index], decode.MAX_FILE_BYTES)

  def size(index: int) -> int:
    try:
      return os.stat(paths[index]).st_size
    except OSError:
      return -1

  drawn_by = names if split_rule > 1 else None
  return Encoded(np.array(labels, np.int32), np.arange(len(paths)), paths.__getitem__, read, drawn_by, size)


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
      reader = csv.reader(stream, strict=True, skipinitialspace=True)
      rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
  except csv.Error as error:
    raise InputError(f'{file}:{reader.line_num}: not a readable CSV file: {error}') from None
  except (OSError, ValueError) as error:
    raise InputError(f'{file}: not a readable CSV file: {getattr(error, "strerror", None) or error}') from None
  columns = _columns(file, rows[0][1] if rows else [])
  seen: dict[str, int] = {}
  return [_row(file, line, cells, columns, seen) for line, cells in rows[1:]]


def _columns(file: pathlib.Path, header: list[str]) -> list[str]:
  """Return the names of the columns, of which those that are known count, in any case of letters."""
  if any(map(_is_no_text, header)):
    raise InputError(f'{file}: not a readable CSV file: its first line is no UTF-8 text; save it as UTF-8')
  columns = [name.lower() if name.lower() in COLUMNS else name for name in header]
  if not set(COLUMNS[:2]) <= set(columns):
    found = ', '.join(map(repr, header)) or 'none'
    raise InputError(
      f'{file}: expected the columns path, label and optionally split, separated by commas; found {found}'
    )
  twice = [name for name in COLUMNS if columns.count(name) > 1]
  if twice:
    raise InputError(f'{file}: {columns.count(twice[0])} columns are called {twice[0]}; expected one')
  return columns


def _is_no_text(cell: str) -> bool:
  return '\0' in cell or any('\ud800' <= character <= '\udfff' for character in cell)


def _row(file: pathlib.Path, line: int, row: list[str], columns: list[str], seen: dict[str, int]) -> Row:
  if len(row) > len(columns):
    found = f'{len(row)} cells, and the header has {len(columns)}; quote a cell that has a comma: "a, b"'
    raise InputError(f'{file}:{line}: {found}')
  cells = dict.fromkeys(COLUMNS, '') | dict(zip(columns, row, strict=False))
  if not cells['path'] or not cells['label']:
    raise InputError(f'{file}:{line}: no {"path" if cells["label"] else "label"}')
  split = cells['split'] or 'train'
  if split not in SPLITS:
    raise InputError(f'{file}:{line}: unknown split {split!r}{nearest(split, SPLITS)}')
  path = os.path.normpath(file.parent / cells['path'])
  if not os.path.isfile(path):
    raise InputError(f'{file}:{line}: no such file: {path}')
  if path in seen:
    raise InputError(f'{file}:{line}: {cells["path"]} is listed in line {seen[path]} too')
  seen[path] = line
  return Row(line, path, cells['label'], split, pathlib.Path(os.path.normpath(cells['path'])).as_posix())


def _say_lookalikes(file: pathlib.Path, names: Sequence[str]) -> None:
  """Say which classes are called alike but for the case of letters, inner space or the form of an accent."""
  alike: Mapping[str, list[str]] = collections.defaultdict(list)
  for name in names:
    alike[' '.join(unicodedata.normalize('NFKC', name).casefold().split())].append(name)
  for group in (group for group in alike.values() if len(group) > 1):
    say(f'{file}: {" and ".join(map(repr, group))} are {len(group)} classes; write them alike if they are one')
