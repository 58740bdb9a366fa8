"""`jaxres prepare`: CIFAR-10 and CIFAR-100 from their published archives, with no TensorFlow.

TFDS's own builder needs TensorFlow to unpack the archive, and writes a format that only TensorFlow reads. Here the
images are written as array_record or as one .npz file.
"""

import argparse
import contextlib
import io
import pathlib
import shlex
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from jaxres.data import archive as archive_lib
from jaxres.data import tfds as prepared
from jaxres.data.archive import PUBLISHED, SIDE, Contents, Published, Split
from jaxres.errors import InputError, nearest


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
  contents = archive_lib.read(published, archive_lib.find(published, root, archive))
  _say(f'writing {_count(contents)} to {folder}')
  with archive_lib.file_errors(folder):
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
  contents = archive_lib.read(published, archive_lib.find(published, prepared.root(), archive))
  _say(f'writing {_count(contents)} to {path}')
  arrays: dict[str, Any] = {'name': name, 'class_names': contents.names['label']}
  for split, (images, labels) in contents.splits.items():
    arrays |= {f'{split}_x': images, f'{split}_y': labels['label'].astype(np.int32)}
  with archive_lib.file_errors(path), archive_lib.complete(path) as part:
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


def _count(contents: Contents) -> str:
  return ', '.join(f'{len(s.images):,} {name} images' for name, s in contents.splits.items())


def _write_array_record(name: str, published: Published, contents: Contents, root: pathlib.Path) -> None:
  """Write root/name/version through TFDS, whose folder is renamed only when it is complete."""
  import tensorflow_datasets as tfds  # slow; never imports TensorFlow here

  root.mkdir(parents=True, exist_ok=True)
  builder = _builder_class(tfds, name, published, contents)(data_dir=root)
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself in several lines
    builder.download_and_prepare(file_format='array_record')


def _builder_class(tfds: Any, name: str, published: Published, contents: Contents) -> Any:
  """Return a builder of ``contents``, kept out of TFDS's register: that has one of its name."""

  def info(self: Any) -> Any:
    labels = {k: tfds.features.ClassLabel(names=list(v)) for k, v in contents.names.items()}
    image = tfds.features.Image(shape=(SIDE, SIDE, 3))
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
    with path.open('rb') as raw, np.load(raw, allow_pickle=False) as file:
      found = str(file['name'])
  except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
    raise InputError(f'{path} exists and is not {name}: remove it or choose another name') from error
  if found != name:
    raise InputError(f'{path} exists and holds {found}, not {name}: choose another name')
