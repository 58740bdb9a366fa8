"""CIFAR-10 and CIFAR-100 from their published archives, as a TFDS set or as one .npz file.

No TensorFlow is needed. TFDS's own CIFAR builders need it to unpack the archive, and write a format that only it reads;
here the images are written as array_record or as one .npz file.
"""

import functools
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from jaxres.data.prepare.writer import write
from jaxres.data.sources import cifar, tfds
from jaxres.data.sources.cifar import PUBLISHED, SIDE, Contents, Published, Split
from jaxres.errors import InputError, check_word, print_status
from jaxres.files import complete, file_errors
from jaxres.npz import load_npz
from jaxres.paths import output_path

HOMEPAGE = 'https://www.cs.toronto.edu/~kriz/cifar.html'


def prepare(name: str, data_dir: str | None = None, archive: str | None = None) -> pathlib.Path:
  """Write the set ``name`` as TFDS writes it, in array_record format; do nothing if it is there.

  It is written to a folder of another name, which is renamed when it is complete. Features, version
  and example keys are those of TFDS's own builder, and the class names are stored too.

  Args:
    name: 'cifar10' or 'cifar100'.
    data_dir: where sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    archive: the published binary archive; None downloads it to data_dir/downloads.

  Returns:
    The folder of the prepared set, data_dir/name/version.

  Raises:
    InputError: unknown name, no network, wrong archive, no array_record, or a place that cannot be
      written.
  """
  published = _get_published(name)
  root = tfds.root(data_dir)
  folder = root / name / published.version
  if tfds.is_prepared(name, data_dir):
    print_status(f'{name} is already prepared in {root / name}')
    return folder
  if folder.exists():
    raise InputError(
      folder, f'it exists but is no {name} in array_record format', fix='move it away or choose another --data_dir'
    )
  if not tfds.has_array_record():
    raise InputError(
      name, 'array_record is not installed (it has wheels for Linux only)', fix=tfds.without_array_record(name)
    )
  contents = cifar.read(published, cifar.find_archive(published, root, archive))
  print_status(f'writing {_count(contents)} to {folder}')
  with file_errors(folder):
    try:
      _write_array_record(name, published, contents, root)
    except OSError:
      if not tfds.is_prepared(name, data_dir):  # else another process was faster
        raise
  return folder


def prepare_npz(name: str, file: str, archive: str | None = None) -> pathlib.Path:
  """Write the set ``name`` as one .npz file, for machines without array_record.

  It holds train_x, test_x uint8 [N, 32, 32, 3] in the published order, train_y, test_y int32 [N],
  class_names and the set's name. Nothing is done if the file is there and holds that set.

  Args:
    name: 'cifar10' or 'cifar100'.
    file: the file to write, ending in .npz.
    archive: the published binary archive; None downloads it to the directory of data sets.

  Returns:
    The file.

  Raises:
    InputError: unknown name, no network, wrong archive, or a file that cannot be written.
  """
  published = _get_published(name)
  path = output_path(file, '--npz')
  if path.suffix != '.npz':
    raise InputError(f'--npz {file}', expected='a file name that ends in .npz')
  if path.exists():
    _check_npz(path, name)
    print_status(f'{name} is already prepared in {path}')
    return path
  contents = cifar.read(published, cifar.find_archive(published, tfds.root(), archive))
  print_status(f'writing {_count(contents)} to {path}')
  arrays: dict[str, Any] = {'name': name, 'class_names': contents.names['label']}
  for split, (images, labels) in contents.splits.items():
    arrays |= {f'{split}_x': images, f'{split}_y': labels['label'].astype(np.int32)}
  with file_errors(path), complete(path) as part:
    np.savez(part, **arrays)
  return path


def _get_published(name: str) -> Published:
  check_word('jaxres prepare', name, PUBLISHED, 'data set')
  return PUBLISHED[name]


def _count(contents: Contents) -> str:
  return ', '.join(f'{len(s.images):,} {name} images' for name, s in contents.splits.items())


def _write_array_record(name: str, published: Published, contents: Contents, root: pathlib.Path) -> None:
  def features(kinds: Any) -> dict[str, Any]:
    labels = {label: kinds.ClassLabel(names=list(names)) for label, names in contents.names.items()}
    return {'id': kinds.Text(), 'image': kinds.Image(shape=(SIDE, SIDE, 3)), **labels}

  splits = {split: functools.partial(_examples, split, arrays) for split, arrays in contents.splits.items()}
  about = f'{name} as published at {published.url}'
  write(root, name, published.version, features, splits, description=about, homepage=HOMEPAGE)


def _examples(split: str, arrays: Split) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield TFDS's key and example of every image; ids are TFDS's own: train_00000, ..."""
  for i, image in enumerate(arrays.images):
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(png, 'PNG')
    labels = {label: int(values[i]) for label, values in arrays.labels.items()}
    yield i, {'id': f'{split}_{i:05d}', 'image': png.getvalue(), **labels}


def _check_npz(path: pathlib.Path, name: str) -> None:
  """Raise an InputError unless ``path`` is what ``prepare_npz`` writes for ``name``."""
  try:
    existing = str(load_npz(path, 'name')['name'])
  except ValueError as error:
    raise InputError(path, f'it exists and is not {name}', fix='remove it or choose another name') from error
  if existing != name:
    raise InputError(path, f'it exists and holds {existing}, not {name}', fix='choose another name')
