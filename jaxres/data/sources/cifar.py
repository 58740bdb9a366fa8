"""The published archives of CIFAR-10 and CIFAR-100: found or downloaded, checked, read into memory.

It is the archive of plain bytes, never the pickled one. It is checked against its published SHA-256 and read by exact
member names; nothing is ever unpacked to disk.
"""

import pathlib
import tarfile
from typing import NamedTuple

import numpy as np

from jaxres import files
from jaxres.errors import InputError
from jaxres.paths import user_path

SIDE = 32
_PIXELS = 3 * SIDE * SIDE


class Published(NamedTuple):
  """A published archive and what lies where in it."""

  url: str
  size: int  # bytes
  sha256: str
  version: str  # of the TFDS set
  splits: dict[str, tuple[str, ...]]  # split -> members, in order
  names: dict[str, str]  # label -> member with its class names, in the order of a record's bytes


# URL, size and SHA-256: tensorflow_datasets/url_checksums/cifar10.txt and cifar100.txt.
PUBLISHED = {
  'cifar10': Published(
    url='https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
    size=170052171,
    sha256='c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
    version='3.0.2',
    splits={
      'train': tuple(f'cifar-10-batches-bin/data_batch_{i}.bin' for i in range(1, 6)),
      'test': ('cifar-10-batches-bin/test_batch.bin',),
    },
    names={'label': 'cifar-10-batches-bin/batches.meta.txt'},
  ),
  'cifar100': Published(
    url='https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
    size=168513733,
    sha256='58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
    version='3.0.2',
    splits={'train': ('cifar-100-binary/train.bin',), 'test': ('cifar-100-binary/test.bin',)},
    names={
      'coarse_label': 'cifar-100-binary/coarse_label_names.txt',
      'label': 'cifar-100-binary/fine_label_names.txt',
    },
  ),
}


class Split(NamedTuple):
  """One split as published."""

  images: np.ndarray  # uint8 [N, 32, 32, 3]
  labels: dict[str, np.ndarray]  # label -> uint8 [N]


class Contents(NamedTuple):
  """An archive's splits and, for each of its labels, the class names."""

  splits: dict[str, Split]
  names: dict[str, tuple[str, ...]]


def find_archive(published: Published, root: pathlib.Path, given: str | None) -> pathlib.Path:
  """Return the path of an archive with the published SHA-256, downloaded where none is given."""
  if given:
    path = user_path(given, '--archive')
    if not path.exists():
      raise InputError(f'--archive {given}', 'no such file')
    digest = files.sha256_of(path)
    if digest != published.sha256:
      raise InputError(
        f'--archive {given}', f'is not {published.url}', expected=f'sha256 {published.sha256}', found=digest
      )
    return path
  path = root / 'downloads' / published.url.rpartition('/')[2]
  if not (path.is_file() and files.sha256_of(path) == published.sha256):
    _download(published, path)
  return path


def _download(published: Published, path: pathlib.Path) -> None:
  """Download the archive to ``path``, which appears only when its SHA-256 is right."""
  fix = 'or fetch it by hand and pass it with `jaxres prepare ... --archive FILE`'
  files.download(published.url, path, published.sha256, published.size, fix)


def read(published: Published, path: pathlib.Path) -> Contents:
  """Read an archive into memory (184 MB).

  Source: https://www.cs.toronto.edu/~kriz/cifar.html, "binary version": a record is its label bytes
  and 3072 bytes of one image, channel first.
  """
  wanted = [
    *(m for members in published.splits.values() for m in members),
    *published.names.values(),
  ]
  contents = _members(path, set(wanted))
  missing = [member for member in wanted if member not in contents]
  if missing:
    raise InputError(path, f'it has no file {missing[0]}')
  names = {label: tuple(contents[member].decode('ascii').split()) for label, member in published.names.items()}
  splits = {
    split: _records(b''.join(contents[m] for m in members), names, f'{path}, {members[0]}')
    for split, members in published.splits.items()
  }
  return Contents(splits, names)


def _members(path: pathlib.Path, wanted: set[str]) -> dict[str, bytes]:
  """Return the bytes of the wanted regular files of a .tar.gz; nothing is ever unpacked to disk."""
  contents = {}
  try:
    with tarfile.open(path, 'r|gz') as tar:
      for member in tar:
        file = tar.extractfile(member) if member.isfile() and member.name in wanted else None
        if file is not None:
          contents[member.name] = file.read()
  except (OSError, EOFError, tarfile.TarError) as error:
    raise InputError(path, f'cannot read it as .tar.gz: {error}') from error
  return contents


def _records(data: bytes, names: dict[str, tuple[str, ...]], where: str) -> Split:
  """Split records into labels and images, after checking both."""
  size = len(names) + _PIXELS
  if not data or len(data) % size:
    raise InputError(where, expected=f'records of {size} bytes', found=f'{len(data)} bytes in all')
  records = np.frombuffer(data, np.uint8).reshape(-1, size)
  labels = {label: records[:, i] for i, label in enumerate(names)}
  for label, values in labels.items():
    if values.max() >= len(names[label]):
      raise InputError(where, f'{label} {values.max()}, but only {len(names[label])} class names')
  images = records[:, len(names) :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
  return Split(images, labels)
