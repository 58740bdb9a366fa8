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
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxres.data.prepare import cifar as prepare_cifar
from jaxres.data.prepare.writer import Examples, write
from jaxres.data.sources import tfds
from jaxres.errors import InputError, print_status
from jaxres.files import download, file_errors, sha256_of

MAX_BYTES = 1 << 28  # of an IDX file, unpacked, and of the members of a zip together
MAX_MEMBER = 1 << 20  # bytes of an image in a zip
_JPEG = re.compile(r'2750/(\w+)/\w+\.jpg')  # of EuroSAT.zip: the class and the file


class File(NamedTuple):
  """A file as it was published."""

  url: str
  size: int  # bytes
  sha256: str


class Published(NamedTuple):
  """A published set."""

  files: dict[str, File]  # by split and content, such as 'train-images'; of a zip 'train' alone
  class_names: tuple[str, ...]  # in the order of the labels
  shape: tuple[int, int, int]  # of an image
  version: str  # of the TFDS set
  homepage: str


def _idx(root: str, *parts: tuple[int, str]) -> dict[str, File]:
  """Return the four files of a set of MNIST's layout, given size and SHA-256 of each in the order of ``names``."""
  names = {'train-images': 'train-images-idx3', 'train-labels': 'train-labels-idx1'}
  names |= {'test-images': 't10k-images-idx3', 'test-labels': 't10k-labels-idx1'}
  return {key: File(f'{root}{name}-ubyte.gz', *part) for (key, name), part in zip(names.items(), parts, strict=True)}


# URL, size and SHA-256: tensorflow_datasets/url_checksums/{mnist,fashion_mnist,kmnist,eurosat}.txt. Names of the
# classes: the pages of the sets.
PUBLISHED = {
  'mnist': Published(
    files=_idx(
      'https://storage.googleapis.com/cvdf-datasets/mnist/',
      (9912422, '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609'),
      (28881, '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c'),
      (1648877, '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6'),
      (4542, 'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6'),
    ),
    class_names=tuple('0123456789'),
    shape=(28, 28, 1),
    version='3.0.1',
    homepage='http://yann.lecun.com/exdb/mnist/',
  ),
  'fashion_mnist': Published(
    files=_idx(
      'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
      (26421880, '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84'),
      (29515, 'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845'),
      (4422102, '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073'),
      (5148, '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5'),
    ),
    class_names=(
      *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'),
      *('Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
    ),
    shape=(28, 28, 1),
    version='3.0.1',
    homepage='https://github.com/zalandoresearch/fashion-mnist',
  ),
  'kmnist': Published(
    files=_idx(
      'http://codh.rois.ac.jp/kmnist/dataset/kmnist/',
      (18165135, '51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4'),
      (29497, 'e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17'),
      (3041136, 'edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5'),
      (5120, '20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c'),
    ),
    class_names=('o', 'ki', 'su', 'tsu', 'na', 'ha', 'ma', 'ya', 're', 'wo'),
    shape=(28, 28, 1),
    version='3.0.1',
    homepage='http://codh.rois.ac.jp/kmnist/',
  ),
  'eurosat': Published(
    files={
      'train': File(
        'http://madm.dfki.de/files/sentinel/EuroSAT.zip',
        94280567,
        '8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd',
      )
    },
    class_names=(
      *('AnnualCrop', 'Forest', 'HerbaceousVegetation', 'Highway', 'Industrial'),
      *('Pasture', 'PermanentCrop', 'Residential', 'River', 'SeaLake'),
    ),
    shape=(64, 64, 3),
    version='2.0.0',
    homepage='https://github.com/phelber/EuroSAT',
  ),
}


def names() -> tuple[str, ...]:
  """Return the names of the sets that can be downloaded and prepared, CIFAR too."""
  return tfds.PREPARABLE


def prepare(name: str, data_dir: str | None = None) -> pathlib.Path:
  """Download the set ``name`` where it is not there, and write it as TFDS does, in array_record format.

  Args:
    name: of ``names``.
    data_dir: where sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.

  Returns:
    The folder of the prepared set, data_dir/name/version.

  Raises:
    InputError: no network, a file that is not the published one, no array_record, or a place that cannot be written.
  """
  if name in prepare_cifar.PUBLISHED:
    return prepare_cifar.prepare(name, data_dir)
  published, root = PUBLISHED[name], tfds.root(data_dir)
  folder = root / name / published.version
  if tfds.is_prepared(name, data_dir):
    print_status(f'{name} is already prepared in {root / name}')
    return folder
  if folder.exists():
    fix = 'move it away or choose another --data_dir'
    raise InputError(f'{folder} exists but is no {name} in array_record format; {fix}')
  if not tfds.has_array_record():
    raise InputError(f'array_record is not installed (it has wheels for Linux only); {tfds.without_array_record(name)}')
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
      raise InputError(f'{where}: expected images of {published.shape[:2]} and as many labels, found {reality}')
    if labels.max(initial=0) >= len(published.class_names):
      raise InputError(f'{where}: label {labels.max()}, but {len(published.class_names)} classes')
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
    raise InputError(f'{path}: cannot read it as .gz: {error}') from error
  start = 4 + 4 * dimensions
  if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
    raise InputError(f'{path}: no IDX file of unsigned bytes in {dimensions} dimensions')
  shape = np.frombuffer(content[4:start], '>u4').astype(int).tolist()
  if math.prod(shape) != len(content) - start:
    raise InputError(f'{path}: {shape} values are {math.prod(shape):,}, and it holds {len(content) - start:,}')
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
    raise InputError(f'{path}: cannot read it as .zip: {error}') from error
  members = {info.filename: match[1] for info in infos if (match := _JPEG.fullmatch(info.filename))}
  unknown = sorted(set(members.values()) - set(class_names))
  missing = sorted(set(class_names) - set(members.values()))
  if unknown or missing:
    raise InputError(f'{path}: expected images of the classes {", ".join(class_names)}; differing: {unknown + missing}')
  if any(info.file_size > MAX_MEMBER for info in infos) or sum(info.file_size for info in infos) > MAX_BYTES:
    raise InputError(f'{path}: its members are larger than images of such a set')
  return sorted(members.items())


def _jpegs(
  path: pathlib.Path, members: Sequence[tuple[str, str]], published: Published
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield a key and an example of every image."""
  with zipfile.ZipFile(path) as archive:
    for i, (name, class_name) in enumerate(members):
      label = published.class_names.index(class_name)
      yield i, {'id': pathlib.PurePosixPath(name).stem, 'image': archive.read(name), 'label': label}
