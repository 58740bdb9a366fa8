"""Published sets besides CIFAR: MNIST, Fashion-MNIST and Kuzushiji-MNIST from IDX files, EuroSAT from a zip of JPEGs.

Each file is checked against its published SHA-256 before it is read, and nothing is unpacked to disk.
"""

import functools
import gzip
import io
import math
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxres.data.prepare import cifar as prepare_cifar
from jaxres.data.prepare.writer import Examples, write
from jaxres.data.sources import cifar, tfds
from jaxres.data.sources.published import PUBLISHED, File, Published
from jaxres.errors import InputError, print_status
from jaxres.files import download, file_errors, sha256_of

MAX_BYTES = 1 << 28  # of an IDX file, unpacked, and of the members of a zip together
MAX_MEMBER = 1 << 20  # bytes of an image in a zip
_JPEG = re.compile(r'2750/(\w+)/\w+\.jpg')  # of EuroSAT.zip: the class and the file


def prepare(name: str, data_dir: str | None = None) -> pathlib.Path:
  """Download the set ``name`` where it is not there, and write it as TFDS does, in array_record format.

  Args:
    name: one of ``tfds.PREPARABLE``.
    data_dir: where sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.

  Returns:
    The folder of the prepared set, data_dir/name/version.

  Raises:
    InputError: no network, a file that is not the published one, no array_record, or a place that cannot be written.
  """
  if name in cifar.PUBLISHED:
    return prepare_cifar.prepare(name, data_dir)
  published, root = PUBLISHED[name], tfds.root(data_dir)
  folder = root / name / published.version
  if tfds.is_prepared(name, data_dir):
    print_status(f'{name} is already prepared in {root / name}')
    return folder
  if folder.exists():
    fix = 'move it away or choose another --data_dir'
    raise InputError(folder, f'it exists but is no {name} in array_record format', fix=fix)
  if not tfds.has_array_record():
    raise InputError(
      name, 'array_record is not installed (it has wheels for Linux only)', fix=tfds.without_array_record(name)
    )
  paths = {key: _fetch(file, root / 'downloads' / name) for key, file in published.files.items()}
  splits = _zip_splits(published, paths['train']) if 'train' in paths else _idx_splits(published, paths)
  print_status(f'writing {name} to {folder}')
  features = lambda kinds: {
    'id': kinds.Text(),
    'image': kinds.Image(shape=published.shape),
    'label': kinds.ClassLabel(names=list(published.class_names)),
  }
  about = f'{name} as published at {", ".join(file.url for file in published.files.values())}'
  with file_errors(folder):
    write(root, name, published.version, features, splits, description=about, homepage=published.homepage)
  return folder


def _fetch(file: File, folder: pathlib.Path) -> pathlib.Path:
  """Return the path of ``file`` in ``folder``, downloaded where it is not there with its SHA-256."""
  path = folder / file.url.rpartition('/')[2]
  if not (path.is_file() and sha256_of(path) == file.sha256):
    download(file.url, path, file.sha256, file.size, f'or fetch it by hand to {path}')
  return path


def _idx_splits(published: Published, paths: dict[str, pathlib.Path]) -> dict[str, Examples]:
  """Return what makes the examples of train and test."""
  splits: dict[str, Examples] = {}
  for split in ('train', 'test'):
    images, labels = read_idx(paths[f'{split}-images'], 3), read_idx(paths[f'{split}-labels'], 1)
    where = paths[f'{split}-images']
    if images.shape[1:] != published.shape[:2] or len(images) != len(labels):
      reality = f'{list(images.shape)} and {len(labels):,} labels'
      raise InputError(where, expected=f'images of {published.shape[:2]} and as many labels', found=reality)
    if labels.max(initial=0) >= len(published.class_names):
      raise InputError(where, f'label {labels.max()}, but {len(published.class_names)} classes')
    splits[split] = functools.partial(_arrays, split, images, labels)
  return splits


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
  """Return the uint8 array of a gzipped IDX file.

  Source: http://yann.lecun.com/exdb/mnist/, "the IDX file format": two zero bytes, 8 for unsigned bytes, the number of
  dimensions, each as a big-endian int32, and the values in C order.

  Args:
    path: of the file.
    dimensions: that it must have.

  Raises:
    InputError: it is no such file.
  """
  try:
    with gzip.open(path) as file:
      content = file.read(MAX_BYTES + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(path, f'cannot read it as .gz: {error}') from error
  start = 4 + 4 * dimensions
  if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
    raise InputError(path, f'no IDX file of unsigned bytes in {dimensions} dimensions')
  shape = np.frombuffer(content[4:start], '>u4').astype(int).tolist()
  if math.prod(shape) != len(content) - start:
    raise InputError(path, f'{shape} values are {math.prod(shape):,}, and it holds {len(content) - start:,}')
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _arrays(split: str, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield a key and an example of every image, uint8 ``[N, H, W]``, in the published order."""
  for i, image in enumerate(images):
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(png, 'PNG')
    yield i, {'id': f'{split}_{i:05d}', 'image': png.getvalue(), 'label': int(labels[i])}


def _zip_splits(published: Published, path: pathlib.Path) -> dict[str, Examples]:
  """Return what makes the examples of train, the one split of a zip of JPEGs by class."""
  members = _members(path, published.class_names)
  return {'train': functools.partial(_jpegs, path, members, published)}


def _members(path: pathlib.Path, class_names: Sequence[str]) -> list[tuple[str, str]]:
  """Return the members of a zip that are images, by name, each with its class."""
  try:
    with zipfile.ZipFile(path) as archive:
      infos = archive.infolist()
  except (OSError, zipfile.BadZipFile) as error:
    raise InputError(path, f'cannot read it as .zip: {error}') from error
  members = {info.filename: match[1] for info in infos if (match := _JPEG.fullmatch(info.filename))}
  unknown = sorted(set(members.values()) - set(class_names))
  missing = sorted(set(class_names) - set(members.values()))
  if unknown or missing:
    problem = f'its classes differ in {unknown + missing}'
    raise InputError(path, problem, expected=f'images of the classes {", ".join(class_names)}')
  if any(info.file_size > MAX_MEMBER for info in infos) or sum(info.file_size for info in infos) > MAX_BYTES:
    raise InputError(path, 'its members are larger than images of such a set')
  return sorted(members.items())


def _jpegs(
  path: pathlib.Path, members: Sequence[tuple[str, str]], published: Published
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield a key and an example of every image."""
  with zipfile.ZipFile(path) as archive:
    for i, (name, class_name) in enumerate(members):
      label = published.class_names.index(class_name)
      yield i, {'id': pathlib.PurePosixPath(name).stem, 'image': archive.read(name), 'label': label}
