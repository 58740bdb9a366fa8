"""Image files: a folder with one sub-folder per class, or a CSV of paths and labels."""

import csv
import io
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from jaxres.data import decode
from jaxres.data.arrays import Encoded, Source
from jaxres.data.notes import say
from jaxres.data.splits import with_test
from jaxres.errors import InputError, nearest
from jaxres.paths import open_regular, read_regular, user_path

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif')
SPLITS = ('train', 'val', 'test')
COLUMNS = ('path', 'label', 'split')
MAX_CSV_BYTES = 2 << 30


def read_folder(path: str | None, seed: int) -> Source:
  """Find the images of a folder, as ``find`` does, and hold a test split out where there is none.

  Args:
    path: the folder.
    seed: of the stratified fifth of the training images that is held out where there is no test split.

  Raises:
    InputError: as ``find``.
  """
  splits, names = find(path)
  return with_test(splits, names, str(path), seed)


def find(path: str | None) -> tuple[dict[str, Encoded], tuple[str, ...]]:
  """Find the images of ``path/class/*``, or ``path/train/class/*`` and beside it ``val`` and ``test``.

  Args:
    path: the folder. A class is called as its folder and numbered by the order of the names. Hidden files, and files
      that are not JPEG, PNG, BMP, WebP or GIF by their names, are left out.

  Returns:
    The splits, of which train is one, and the names of the classes.

  Raises:
    InputError: there is no such folder, a class has no images, or the splits have different classes.
  """
  root = _existing(path, 'folder', 'a folder with one sub-folder of images per class')
  splits = {name: root / name for name in SPLITS if _folders(root / name)}
  if not splits:
    names, files = _classes(root)
    if set(map(str.lower, names)) <= set(SPLITS):
      layout = f'the sub-folders are {", ".join(names)}, with images directly in them'
      raise InputError(f'{root}: {layout}; expected a sub-folder per class, in train, val and test or without them')
    return {'train': files}, names
  flat = [name for name in SPLITS if name not in splits and (root / name).is_dir()]
  if flat:
    say(f'{root / flat[0]} has no sub-folder per class and is left out')
  odd = [folder.name for folder in _folders(root) if folder.name not in splits and _folders(folder)]
  odd = [name for name in odd if name.lower().startswith(SPLITS)]  # what else is there is not asked for
  if odd:
    raise InputError(f'{root}: {odd[0]!r} is no split{nearest(odd[0], SPLITS)}')
  if 'train' not in splits:
    raise InputError(f'{root}: there is {" and ".join(splits)} but no train folder with a sub-folder per class')
  found = {name: _classes(folder) for name, folder in splits.items()}
  names = found['train'][0]
  for split, (others, _) in found.items():
    for missing, here, there in (
      (set(others) - set(names), split, 'train'),
      (set(names) - set(others), 'train', split),
    ):
      if missing:
        raise InputError(f'{root}: the class {min(missing)!r} is in {here} but not in {there}; expected equal classes')
  return {split: files for split, (_, files) in found.items()}, names


def read_csv(path: str | None, seed: int) -> Source:
  """Find the images that a CSV file lists.

  Args:
    path: a UTF-8 file with a header: ``path`` (from the CSV's own folder where it is relative), ``label``, and
      optionally ``split``: train, val or test. Labels are names of classes, numbered in their order: by value where
      all are integers, else by the alphabet.
    seed: of the stratified fifth of the training images that is held out where there is no test split.

  Raises:
    InputError: the file is missing or malformed, an image is missing or listed twice, or a class of val or test is
      not in train.
  """
  file = _existing(path, 'csv', 'a file with the columns path and label')
  rows = _rows(file)
  train = {label for _, _, label, split in rows if split == 'train'}
  if not train:
    raise InputError(f'{file}: it lists no training images')
  integers = all(re.fullmatch(r'-?[0-9]+', label) for label in train)
  names = tuple(sorted(train, key=lambda label: (int(label), label) if integers else (0, label)))
  number = {label: k for k, label in enumerate(names)}
  paths: dict[str, list[str]] = {}
  labels: dict[str, list[int]] = {}
  for line, image, label, split in rows:
    if label not in number:
      raise InputError(f'{file}:{line}: the class {label!r} is in {split} but not in train{nearest(label, names)}')
    paths.setdefault(split, []).append(image)
    labels.setdefault(split, []).append(number[label])
  return with_test({split: _files(paths[split], labels[split]) for split in paths}, names, str(file), seed)


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


def _classes(root: pathlib.Path) -> tuple[tuple[str, ...], Encoded]:
  """Return the names of the classes in ``root`` and their images, in the order of class and file name."""
  classes = _folders(root)
  if not classes:
    files = sum(path.is_file() for path in root.iterdir())
    raise InputError(f'{root}: expected a sub-folder of images per class, found none (and {files} files)')
  if {name.name.lower() for name in classes} <= set(SPLITS) and not any(map(_holds_files, classes)):
    found = ', '.join(name.name for name in classes)
    raise InputError(f'{root}: the sub-folders are {found}; splits are called {", ".join(SPLITS)}, in lower case')
  paths: list[str] = []
  labels: list[int] = []
  others: list[str] = []
  for label, folder in enumerate(classes):
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name[0] != '.' and entry.is_file())
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    if not images:
      raise InputError(
        f'{folder}: no images: expected files that end in {", ".join(SUFFIXES)}, found {len(names)} others'
      )
    paths += [f'{folder}{os.sep}{name}' for name in images]
    labels += [label] * len(images)
    others += [f'{folder}{os.sep}{name}' for name in set(names) - set(images)]
  if others:
    say(f'{root}: {len(others)} files are no images by their names and left out, such as {min(others)}')
  return tuple(folder.name for folder in classes), _files(paths, labels)


def _holds_files(folder: pathlib.Path) -> bool:
  return any(path.is_file() for path in folder.iterdir())


def _files(paths: Sequence[str], labels: Sequence[int]) -> Encoded:
  def read(index: int) -> bytes:
    return read_regular(paths[index], decode.MAX_FILE_BYTES)

  return Encoded(np.array(labels, np.int32), np.arange(len(paths)), paths.__getitem__, read)


def _rows(file: pathlib.Path) -> list[tuple[int, str, str, str]]:
  """Return line number, path of the image, label and split of every row, checked."""
  try:
    # A name that is not UTF-8 is a name: what lies on the disk is found by its bytes.
    with io.TextIOWrapper(open_regular(file, MAX_CSV_BYTES), 'utf-8-sig', 'surrogateescape', newline='') as stream:
      reader = csv.DictReader(stream, strict=True)
      reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
      rows = [(reader.line_num, row) for row in reader]
  except (OSError, ValueError, csv.Error) as error:
    raise InputError(f'{file}: not a readable CSV file: {getattr(error, "strerror", None) or error}') from None
  if any(map(_is_no_text, header)):
    raise InputError(f'{file}: not a readable CSV file: its first line is no UTF-8 text; save it as UTF-8')
  if not set(COLUMNS[:2]) <= set(header):
    found = ', '.join(map(repr, header)) or 'none'
    raise InputError(
      f'{file}: expected the columns path, label and optionally split, separated by commas; found {found}'
    )
  seen: dict[str, int] = {}
  return [_row(file, line, row, seen) for line, row in rows]


def _is_no_text(cell: str) -> bool:
  return '\0' in cell or any('\ud800' <= character <= '\udfff' for character in cell)


def _row(file: pathlib.Path, line: int, row: dict[str, str], seen: dict[str, int]) -> tuple[int, str, str, str]:
  cells = {column: (row.get(column) or '').strip() for column in COLUMNS}
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
  return line, path, cells['label'], split
