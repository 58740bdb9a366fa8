"""Image files: a folder with one sub-folder per class, or a CSV of paths and labels."""

import concurrent.futures
import csv
import os
import pathlib
import sys
import threading
from collections.abc import Iterable, Sequence

import numpy as np

from jaxres.data import decode, order
from jaxres.data.arrays import Arrays, Files, Source, Split
from jaxres.errors import InputError, nearest

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif')
SPLITS = ('train', 'val', 'test')
COLUMNS = ('path', 'label', 'split')
_CHUNK = 64  # images that a thread takes at a time


class Images:
  """The images of one split of files, decoded when asked for; threads may share it.

  A training image that cannot be decoded is replaced by the next one of the split that can, as long as there are no
  more than ``max_bad`` of them: which one stands in depends on nothing but the files.

  Attributes:
    size: N, the number of examples.
  """

  def __init__(
    self,
    files: Files,
    image_size: int | None,
    *,
    center_crop: float = 1.0,
    crop_scale: Sequence[float] = (),
    max_bad: int = 0,
  ):
    self.files = files
    self.size = len(files.labels)
    self.image_size = image_size
    self.image_shape = (image_size or 0, image_size or 0, 3)  # 0: each as it is
    self.center_crop = center_crop
    self.crop_scale = crop_scale
    self.max_bad = max_bad
    self._bad: dict[int, str] = {}
    self._lock = threading.Lock()

  def get(self, index: int, draws: Iterable[Sequence[float]] | None = None) -> tuple[np.ndarray, int]:
    """Return the pixels, uint8 ``[size, size, 3]``, and the label of example ``index``.

    Args:
      index: in ``[0, N)``.
      draws: of ``decode.crop_box``, for a random crop where ``crop_scale`` asks for one; None for the centre.

    Raises:
      InputError: more than ``max_bad`` images cannot be decoded; names the last of them.
    """
    for at in range(index, index + self.size):
      at %= self.size
      if at not in self._bad:
        try:
          return self._decode(self.files.paths[at], draws), int(self.files.labels[at])
        except decode.BadImageError as error:
          self._count(at, str(error))
    raise InputError(f'{self.files.paths[index]}: none of the {self.size} images can be decoded')

  def _decode(self, path: str, draws: Iterable[Sequence[float]] | None) -> np.ndarray:
    try:
      with open(path, 'rb', buffering=0) as file:
        data = file.read()
    except OSError as error:
      raise decode.BadImageError(f'cannot read the file: {error.strerror}') from error
    if draws is None or not self.crop_scale or self.image_size is None:
      return decode.whole(data, self.image_size, self.center_crop)
    return decode.cropped(data, self.image_size, self.crop_scale, draws)

  def _count(self, at: int, reason: str) -> None:
    """Note a bad example."""
    with self._lock:
      if at in self._bad:
        return
      if len(self._bad) >= self.max_bad:
        limit = f', and data.max_bad is {self.max_bad}' if self.max_bad else ''
        raise InputError(f'{self.files.paths[at]}: {reason}; repair or remove it{limit}')
      self._bad[at] = reason
      say(f'bad training example {len(self._bad)} of at most {self.max_bad}: {self.files.paths[at]}: {reason}')


def read_folder(path: str | None, seed: int) -> Source:
  """Find the images of ``path/class/*``, or ``path/train/class/*`` and beside it ``val`` and ``test``.

  Args:
    path: the folder. A class is called as its folder and numbered by the order of the names. Hidden files, and files
      that are not JPEG, PNG, BMP, WebP or GIF by their names, are left out.
    seed: of the stratified fifth of the training images that is held out where there is no test split.

  Raises:
    InputError: there is no such folder, a class has no images, or the splits have different classes.
  """
  root = _existing(path, 'folder', 'a folder with one sub-folder of images per class')
  splits = {name: root / name for name in SPLITS if _folders(root / name)}
  if not splits:
    names, files = _classes(root)
    return _with_test({'train': files}, names, root, seed)
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
  return _with_test({split: files for split, (_, files) in found.items()}, names, root, seed)


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
  integers = all(label.lstrip('-').isdecimal() for label in train)
  names = tuple(sorted(train, key=lambda label: (int(label), label) if integers else (0, label)))
  number = {label: k for k, label in enumerate(names)}
  paths: dict[str, list[str]] = {}
  labels: dict[str, list[int]] = {}
  for line, image, label, split in rows:
    if label not in number:
      raise InputError(f'{file}:{line}: the class {label!r} is in {split} but not in train{nearest(label, names)}')
    paths.setdefault(split, []).append(image)
    labels.setdefault(split, []).append(number[label])
  return _with_test({split: _files(paths[split], labels[split]) for split in paths}, names, file, seed)


def read(images: Images, workers: int) -> Arrays:
  """Decode every image, with ``workers`` threads.

  Raises:
    InputError: an image cannot be decoded, they differ in size and no ``image_size`` was given, or they do not fit
      into memory.
  """
  shape = images.get(0)[0].shape
  try:
    pixels = np.empty((images.size, *shape), np.uint8)
  except MemoryError:
    size = images.size * np.prod(shape) / 1e9
    raise InputError(f'{images.size:,} images take {size:.0f} GB; set data.pipeline=stream') from None
  labels = np.empty(images.size, np.int32)

  def fill(start: int) -> None:
    for at in range(start, min(start + _CHUNK, images.size)):
      image, labels[at] = images.get(at)
      if image.shape != shape:
        found = f'{image.shape[1]}x{image.shape[0]} pixels, and the first has {shape[1]}x{shape[0]}'
        raise InputError(f'{images.files.paths[at]}: it has {found}; set data.image_size')
      pixels[at] = image

  pool = concurrent.futures.ThreadPoolExecutor(workers, 'decode')
  try:
    for _ in pool.map(fill, range(0, images.size, _CHUNK)):
      pass
  finally:
    pool.shutdown(cancel_futures=True)
  return Arrays(pixels, labels)


def say(line: str) -> None:
  """Print a line on standard error."""
  print(line, file=sys.stderr, flush=True)


def _with_test(splits: dict[str, Files], names: tuple[str, ...], where: pathlib.Path, seed: int) -> Source:
  """Return the source, with a fifth of its training examples held out where it has no test split."""
  if len(names) < 2:
    raise InputError(f'{where}: expected at least two classes, found {len(names)}: {", ".join(names)}')
  train: Split = splits['train']
  test: Split | None = splits.get('test')
  if test is None:
    size = len(train.labels) // 5
    if not size:
      raise InputError(f'{where}: {len(train.labels)} images are too few to hold a fifth out for a test split')
    held_out = np.zeros(len(train.labels), bool)
    held_out[order.stratified(train.labels, size, seed)] = True
    train, test = train.take(~held_out), train.take(held_out)
    say(f'{where} has no test split: {size:,} of its training images, a stratified fifth, are held out (seed {seed})')
  return Source(train, test, names, splits.get('val'))


def _existing(path: str | None, name: str, what: str) -> pathlib.Path:
  if path is None:
    raise InputError(f'data.path: data.name={name!r} reads {what}; give its path')
  found = pathlib.Path(path).expanduser()
  if not (found.is_dir() if name == 'folder' else found.is_file()):
    raise InputError(f'data.path: no such {"folder" if name == "folder" else "file"}: {path}; expected {what}')
  return found


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  """Return the sub-folders by name, less the hidden ones; none where there is no such folder."""
  if not path.is_dir():
    return []
  return sorted(sub for sub in path.iterdir() if sub.is_dir() and not sub.name.startswith('.'))


def _classes(root: pathlib.Path) -> tuple[tuple[str, ...], Files]:
  """Return the names of the classes in ``root`` and their images, in the order of class and file name."""
  classes = _folders(root)
  if not classes:
    raise InputError(f'{root}: no images: expected a sub-folder per class, found none')
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


def _files(paths: Sequence[str], labels: Sequence[int]) -> Files:
  return Files(np.array(paths, object), np.array(labels, np.int32))


def _rows(file: pathlib.Path) -> list[tuple[int, str, str, str]]:
  """Return line number, path of the image, label and split of every row, checked."""
  try:
    with file.open(encoding='utf-8-sig', newline='') as stream:
      reader = csv.DictReader(stream, strict=True)
      header = reader.fieldnames or ()
      rows = [(reader.line_num, row) for row in reader]
  except (OSError, ValueError, csv.Error) as error:
    raise InputError(f'{file}: not a readable CSV file: {error}') from None
  if not set(COLUMNS[:2]) <= set(header):
    raise InputError(
      f'{file}: expected the columns path, label and optionally split, found {", ".join(header) or "none"}'
    )
  seen: dict[str, int] = {}
  return [_row(file, line, row, seen) for line, row in rows]


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
