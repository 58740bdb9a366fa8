"""An image folder packed into a TFDS set, or into one .npz file."""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxres.data import decode
from jaxres.data.images import Images, decode_all, find_bad
from jaxres.data.prepare.writer import write
from jaxres.data.sources import folder, tfds
from jaxres.data.splits import with_test
from jaxres.data.types import Encoded
from jaxres.errors import InputError, check_range, print_status, printable
from jaxres.files import complete, file_errors
from jaxres.paths import output_path, user_path

VERSION = '1.0.0'
_NAME = re.compile('[a-z][a-z0-9_]*')
_TAKEN = ('digits', 'arrays', 'folder', 'csv', 'cifar10', 'cifar100')  # other words of data.name


def name_of(path: str) -> str:
  """Return what the set of a folder is called: as the folder, in the letters that TFDS takes."""
  name = re.sub('[^a-z0-9]+', '_', user_path(path).resolve().name.lower()).strip('_')
  return name if name[:1].isalpha() else f'set_{name}'


def pack(path: str, name: str, data_dir: str | None = None, max_bad: int = 0) -> pathlib.Path:
  """Write the images of a folder as a TFDS set, to be read as ``data.name=NAME``.

  JPEG and PNG files are stored as they are; what TFDS's Image feature does not hold, such as BMP, CMYK or 16 bits, is
  stored as an RGB PNG. Ids are the paths from the folder, and the order of the examples that of ``data.name=folder``.

  Args:
    path: the folder, as ``folder.find`` knows it. Its val is TFDS's split validation.
    name: of the set.
    data_dir: where sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    max_bad: leave out up to as many images that cannot be decoded.

  Returns:
    The folder of the set, data_dir/name/1.0.0.

  Raises:
    InputError: a bad name, folder or image, the set is there, no array_record, or the place cannot be written.
  """
  if not _NAME.fullmatch(name) or name in _TAKEN:
    expected = f'another word than {", ".join(_TAKEN)}' if name in _TAKEN else 'lower-case letters, digits and _'
    raise InputError(f'--name {name}', expected=expected)
  target = tfds.root(data_dir) / name / VERSION
  if target.exists():
    raise InputError(target, 'it exists', fix='move it away or choose another --name')
  if not tfds.has_array_record():
    raise InputError(
      target, 'array_record is not installed (it has wheels for Linux only)', fix='use --npz FILE --image_size S'
    )
  splits, names = _find_splits(path, max_bad)
  stored = _escape_names(path, names)

  def features(kinds: Any) -> dict[str, Any]:
    image = kinds.Image(shape=(None, None, 3))
    return {'id': kinds.Text(), 'image': image, 'label': kinds.ClassLabel(names=stored)}

  print_status(f'writing {_count(splits)} to {target}')
  examples = {
    {'val': 'validation'}.get(split, split): functools.partial(_examples, path, data) for split, data in splits.items()
  }
  with file_errors(target):
    write(tfds.root(data_dir), name, VERSION, features, examples, description=printable(f'The images of {path}'))
  return target


def pack_npz(path: str, file: str, image_size: int, max_bad: int = 0) -> pathlib.Path:
  """Write the images of a folder as one .npz file, to be read as ``data.name=arrays``.

  Args:
    path: the folder, as ``folder.find`` knows it; a stratified fifth of train becomes test where it has none.
    file: the file to write, ending in .npz.
    image_size: pixels a side that images are resized and center-cropped to.
    max_bad: leave out up to as many images that cannot be decoded.

  Raises:
    InputError: a bad folder or image, the file is there, or it cannot be written.
  """
  target = output_path(file, '--npz')
  if target.suffix != '.npz':
    raise InputError(f'--npz {file}', expected='a file name that ends in .npz')
  if target.exists():
    raise InputError(target, 'it exists', fix='remove it or choose another name')
  check_range('--image_size', image_size, low=1, unit='pixels')
  splits, names = _find_splits(path, max_bad)
  source = with_test(splits, names, path, seed=0)
  parts = {'train': source.train, 'test': source.test, 'val': source.val}
  parts = {split: data for split, data in parts.items() if data is not None}
  print_status(f'writing {_count(parts)} to {target}')
  content: dict[str, Any] = {'class_names': np.array(names)}
  for split, data in parts.items():
    assert isinstance(data, Encoded)
    pixels, labels = decode_all(Images(data, image_size), os.cpu_count() or 1)
    content |= {f'{split}_x': pixels, f'{split}_y': labels}
  with file_errors(target), complete(target) as part:
    np.savez(part, **content)
  return target


def _find_splits(path: str, max_bad: int) -> tuple[dict[str, Encoded], tuple[str, ...]]:
  """Return the splits, less the bad images, and the names of the classes."""
  check_range('--max_bad', max_bad, low=0)
  if not user_path(path).is_dir():
    raise InputError(path, 'no such folder')
  splits, names = folder.find(path)
  if len(names) < 2:
    raise InputError(path, expected='at least two classes', found=f'{len(names)}: {", ".join(names)}')
  bad: list[str] = []
  splits = {split: _keep_good(data, bad, max_bad) for split, data in splits.items()}
  for split, data in splits.items():
    if not len(data.labels) or (split == 'train' and len(np.unique(data.labels)) < len(names)):
      raise InputError(path, f'a class of the split {split} has no image that can be decoded')
  return splits, names


def _escape_names(path: str, names: Sequence[str]) -> list[str]:
  """Return the names of the classes as TFDS keeps them: a line of UTF-8 each; what is none is escaped."""
  stored = [printable(name) for name in names]
  if len(set(stored)) < len(names):
    same = next(name for name in stored if stored.count(name) > 1)
    raise InputError(path, f'two classes are called {same} where they are not UTF-8', fix='rename one of the folders')
  return stored


def _keep_good(data: Encoded, bad: list[str], max_bad: int) -> Encoded:
  """Return the examples that can be decoded; the others are added to ``bad``."""
  good = np.ones(len(data.labels), bool)
  for at, reason in find_bad(data, os.cpu_count()):
    good[at] = False
    bad.append(data.name_of(at))
    if len(bad) > max_bad:
      limit = f', and --max_bad is {max_bad}' if max_bad else ', or leave such out with --max_bad N'
      raise InputError(bad[-1], reason, fix=f'repair or remove it{limit}')
    print_status(f'left out {len(bad)} of at most {max_bad}: {bad[-1]}: {reason}')
  return data.take(good)


def _examples(path: str, data: Encoded) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield TFDS's key and example of every image."""
  for at, label in enumerate(data.labels.tolist()):
    place = pathlib.Path(os.path.relpath(data.name_of(at), user_path(path))).as_posix()
    place = place.encode('utf-8', 'backslashreplace').decode()
    yield at, {'id': place, 'image': decode.to_storable(data.read_at(at)), 'label': label}


def _count(splits: Mapping[str, Any]) -> str:
  return ', '.join(f'{len(data.labels):,} {split} images' for split, data in splits.items())
