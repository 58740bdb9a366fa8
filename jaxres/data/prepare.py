"""`jaxres prepare`: CIFAR-10 and CIFAR-100 from their published archives, with no TensorFlow.

TFDS's own builder needs TensorFlow to unpack the archive, and writes a format that only TensorFlow
reads. Here the archive of plain bytes (never the pickled one) is checked against its published
SHA-256, read by exact member names, and written as array_record or as one .npz file.
"""

import argparse
import contextlib
import hashlib
import http.client
import io
import pathlib
import secrets
import shlex
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from jaxres.data import tfds as prepared
from jaxres.errors import InputError, nearest

TIMEOUT_S = 8.0  # for connecting and for each read: with no network it must end within seconds
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_CHUNK = 1 << 20


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


class _Split(NamedTuple):
  """One split as published."""

  images: np.ndarray  # uint8 [N, 32, 32, 3]
  labels: dict[str, np.ndarray]  # label -> uint8 [N]


class _Contents(NamedTuple):
  """An archive's splits and, for each of its labels, the class names."""

  splits: dict[str, _Split]
  names: dict[str, tuple[str, ...]]


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
  published = _published(name)
  root = prepared.root(data_dir)
  folder = root / name / published.version
  if prepared.is_prepared(name, data_dir):
    _say(f'{name} is already prepared in {root / name}')
    return folder
  if folder.exists():
    raise InputError(
      f'{folder} exists but is no {name} in array_record format; move it away or choose another --data_dir'
    )
  if not prepared.has_array_record():
    raise InputError(
      'array_record is not installed (it has wheels for Linux only); ' + prepared.without_array_record(name)
    )
  contents = _read(published, _archive(published, root, archive))
  _say(f'writing {_count(contents)} to {folder}')
  with _one_line(folder):
    try:
      _write_array_record(name, published, contents, root)
    except OSError:
      if not prepared.is_prepared(name, data_dir):  # else another process was faster
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
  published = _published(name)
  path = pathlib.Path(file).expanduser()
  if path.suffix != '.npz':
    raise InputError(f'--npz {file}: expected a file name that ends in .npz')
  if path.exists():
    _check_npz(path, name)
    _say(f'{name} is already prepared in {path}')
    return path
  contents = _read(published, _archive(published, prepared.root(), archive))
  _say(f'writing {_count(contents)} to {path}')
  arrays: dict[str, Any] = {'name': name, 'class_names': contents.names['label']}
  for split, (images, labels) in contents.splits.items():
    arrays |= {f'{split}_x': images, f'{split}_y': labels['label'].astype(np.int32)}
  with _one_line(path), _complete(path) as part:
    np.savez(part, **arrays)
  return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres prepare`."""
  parser.add_argument('name', metavar='{' + ','.join(PUBLISHED) + '}', help='the data set')
  parser.add_argument('--data_dir', metavar='DIR', help='where it goes; $TFDS_DATA_DIR, else ~/tensorflow_datasets')
  parser.add_argument('--archive', metavar='FILE', help='the published binary archive, instead of downloading it')
  parser.add_argument(
    '--npz',
    metavar='FILE',
    help='write one .npz file instead: needs no array_record (not on Linux)',
  )


def run(args: argparse.Namespace) -> None:
  """Prepare a data set and print where it is and the command that trains on it."""
  if args.npz and args.data_dir:
    raise InputError('--npz FILE and --data_dir DIR are two places to write to; give one of them')
  if args.npz:
    place = prepare_npz(args.name, args.npz, args.archive)
    flags = ['--config.data.name=arrays', f'--config.data.path={shlex.quote(str(place))}']
  else:
    place = prepare(args.name, args.data_dir, args.archive)
    flags = [] if args.name == 'cifar10' else [f'--config.data.name={args.name}']
    flags += [f'--config.data.data_dir={shlex.quote(args.data_dir)}'] if args.data_dir else []
  command = 'python main.py --config configs/resnet20_cifar_quick.py --workdir runs/quick'
  print(f'{args.name} is in {place}')
  print('train on it: ' + ' '.join([command, *flags]))


def _published(name: str) -> Published:
  if name not in PUBLISHED:
    raise InputError(f'cannot prepare {name!r}{nearest(name, PUBLISHED)}')
  return PUBLISHED[name]


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _count(contents: _Contents) -> str:
  return ', '.join(f'{len(s.images):,} {name} images' for name, s in contents.splits.items())


# --- the archive


def _archive(published: Published, root: pathlib.Path, given: str | None) -> pathlib.Path:
  """Return the path of an archive with the published SHA-256, downloaded where none is given."""
  if given:
    path = pathlib.Path(given).expanduser()
    if not path.is_file():
      raise InputError(f'--archive {given}: no such file')
    found = _sha256(path)
    if found != published.sha256:
      raise InputError(f'--archive {given} is not {published.url}: expected sha256 {published.sha256}, found {found}')
    return path
  path = root / 'downloads' / published.url.rpartition('/')[2]
  if not (path.is_file() and _sha256(path) == published.sha256):
    _download(published, path)
  return path


def _sha256(path: pathlib.Path) -> str:
  with _one_line(path, 'read'), path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _download(published: Published, path: pathlib.Path) -> None:
  """Download the archive to ``path``, which appears only when its SHA-256 is right."""
  url = published.url
  fix = 'or fetch it by hand and pass it with `jaxres prepare ... --archive FILE`'
  try:
    with _complete(path) as part:
      with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        found = _copy(response, part, published.size, f'downloading {url}')
      if found != published.sha256:
        raise InputError(
          f'{url}: expected {published.size} bytes with sha256 {published.sha256}, found '
          f'{part.tell()} bytes with {found}; try again, {fix}'
        )
  except (OSError, http.client.HTTPException) as error:
    if isinstance(error, urllib.error.HTTPError):
      error.close()  # it holds the connection
    reason = getattr(error, 'reason', None) or error
    raise InputError(f'cannot download {url} to {path}: {reason}; try again, {fix}') from error


def _copy(source: IO[bytes], target: IO[bytes], size: int, what: str) -> str:
  """Copy ``source`` to ``target`` with a progress line, no further than just over ``size`` bytes.

  Returns:
    The SHA-256 of what was copied.
  """
  digest, done, shown = hashlib.sha256(), 0, -1
  on_terminal = sys.stderr.isatty()
  step, end = (1, '\r') if on_terminal else (25, '\n')  # percent
  try:
    while done <= size and (chunk := source.read(_CHUNK)):
      digest.update(chunk)
      target.write(chunk)
      done += len(chunk)
      percent = 100 * done // size // step * step
      if percent > shown:
        shown = percent
        line = f'{what}: {done / 1e6:.0f} of {size / 1e6:.0f} MB'
        print(line, end=end, file=sys.stderr, flush=True)
  finally:
    if on_terminal:
      print(file=sys.stderr)
  return digest.hexdigest()


@contextlib.contextmanager
def _complete(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Open a .part file beside ``path``, named so on success and removed on any failure.

  Its name is its own, so that two processes that prepare the same set do not meet.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
  try:
    with part.open('xb') as file:
      yield file
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_line(path: pathlib.Path, verb: str = 'write') -> Iterator[None]:
  """Turn an error of the file system, such as a full disk, into one line."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'cannot {verb} {path}: {reason}') from error


def _read(published: Published, path: pathlib.Path) -> _Contents:
  """Read an archive into memory (184 MB).

  Source: https://www.cs.toronto.edu/~kriz/cifar.html, "binary version": a record is its label bytes
  and 3072 bytes of one image, channel first.
  """
  wanted = [
    *(m for members in published.splits.values() for m in members),
    *published.names.values(),
  ]
  found = _members(path, set(wanted))
  missing = [member for member in wanted if member not in found]
  if missing:
    raise InputError(f'{path}: it has no file {missing[0]}')
  names = {label: tuple(found[member].decode('ascii').split()) for label, member in published.names.items()}
  splits = {
    split: _records(b''.join(found[m] for m in members), names, f'{path}, {members[0]}')
    for split, members in published.splits.items()
  }
  return _Contents(splits, names)


def _members(path: pathlib.Path, wanted: set[str]) -> dict[str, bytes]:
  """Return the bytes of the wanted regular files of a .tar.gz; nothing is ever unpacked to disk."""
  found = {}
  try:
    with tarfile.open(path, 'r|gz') as tar:
      for member in tar:
        file = tar.extractfile(member) if member.isfile() and member.name in wanted else None
        if file is not None:
          found[member.name] = file.read()
  except (OSError, EOFError, tarfile.TarError) as error:
    raise InputError(f'{path}: cannot read it as .tar.gz: {error}') from error
  return found


def _records(data: bytes, names: dict[str, tuple[str, ...]], where: str) -> _Split:
  """Split records into labels and images, after checking both."""
  size = len(names) + _PIXELS
  if not data or len(data) % size:
    raise InputError(f'{where}: expected records of {size} bytes, found {len(data)} bytes in all')
  records = np.frombuffer(data, np.uint8).reshape(-1, size)
  labels = {label: records[:, i] for i, label in enumerate(names)}
  for label, values in labels.items():
    if values.max() >= len(names[label]):
      raise InputError(f'{where}: {label} {values.max()}, but only {len(names[label])} class names')
  images = records[:, len(names) :].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
  return _Split(images, labels)


# --- what is written


def _write_array_record(name: str, published: Published, contents: _Contents, root: pathlib.Path) -> None:
  """Write root/name/version through TFDS, whose folder is renamed only when it is complete."""
  import tensorflow_datasets as tfds  # slow; never imports TensorFlow here

  root.mkdir(parents=True, exist_ok=True)
  builder = _builder_class(tfds, name, published, contents)(data_dir=root)
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself in several lines
    builder.download_and_prepare(file_format='array_record')


def _builder_class(tfds: Any, name: str, published: Published, contents: _Contents) -> Any:
  """Return a builder of ``contents``, kept out of TFDS's register: that has one of its name."""

  def info(self: Any) -> Any:
    labels = {k: tfds.features.ClassLabel(names=list(v)) for k, v in contents.names.items()}
    image = tfds.features.Image(shape=(_SIDE, _SIDE, 3))
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{name} as published at {published.url}',
      features=tfds.features.FeaturesDict({'id': tfds.features.Text(), 'image': image, **labels}),
      supervised_keys=('image', 'label'),
      homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
    )

  members = {
    'name': name,
    'VERSION': tfds.core.Version(published.version),
    '_info': info,
    '_split_generators': lambda self, dl_manager: {
      split: self._generate_examples(split, arrays) for split, arrays in contents.splits.items()
    },
    '_generate_examples': lambda self, split, arrays: _examples(split, arrays),
    '__module__': __name__,
  }
  with tfds.core.registered.skip_registration():
    return type(name.capitalize(), (tfds.core.GeneratorBasedBuilder,), members)


def _examples(split: str, arrays: _Split) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yield TFDS's key and example of every image; ids are TFDS's own: train_00000, ..."""
  for i, image in enumerate(arrays.images):
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(png, 'PNG')
    labels = {label: int(values[i]) for label, values in arrays.labels.items()}
    yield i, {'id': f'{split}_{i:05d}', 'image': png.getvalue(), **labels}


def _check_npz(path: pathlib.Path, name: str) -> None:
  """Raise an InputError unless ``path`` is what ``prepare_npz`` writes for ``name``."""
  try:
    with np.load(path, allow_pickle=False) as file:
      found = str(file['name'])
  except (OSError, ValueError, KeyError, EOFError) as error:
    raise InputError(f'{path} exists and is not {name}: remove it or choose another name') from error
  if found != name:
    raise InputError(f'{path} exists and holds {found}, not {name}: choose another name')
