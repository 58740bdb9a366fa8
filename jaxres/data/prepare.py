"""`jaxres prepare`: CIFAR-10 and CIFAR-100 from their published archives, image folders, sets in tfrecord format.

No TensorFlow is needed. TFDS's own CIFAR builders need it to unpack the archive, and write a format that only it reads;
here the images are written as array_record or as one .npz file.
"""

import argparse
import functools
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from jaxres.data import archive as archive_lib
from jaxres.data import pack, tfrecord
from jaxres.data import tfds as prepared
from jaxres.data.archive import PUBLISHED, SIDE, Contents, Published, Split
from jaxres.data.notes import say
from jaxres.data.write import write
from jaxres.errors import InputError, nearest, printable
from jaxres.files import complete, file_errors, load_npz
from jaxres.paths import output_path, shell_word

HOMEPAGE = 'https://www.cs.toronto.edu/~kriz/cifar.html'
IMAGE_SIZE = 64  # pixels a side in the printed command, where images differ in size
_OPTIONS = {  # what goes with each word
  **dict.fromkeys(PUBLISHED, ('data_dir', 'archive', 'npz')),
  'folder': ('dir', 'name', 'data_dir', 'max_bad', 'npz', 'image_size'),
  'tfrecord': ('dir', 'data_dir'),
}


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
    say(f'{name} is already prepared in {root / name}')
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
  say(f'writing {_count(contents)} to {folder}')
  with file_errors(folder):
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
  path = output_path(file, '--npz')
  if path.suffix != '.npz':
    raise InputError(f'--npz {file}: expected a file name that ends in .npz')
  if path.exists():
    _check_npz(path, name)
    say(f'{name} is already prepared in {path}')
    return path
  contents = archive_lib.read(published, archive_lib.find(published, prepared.root(), archive))
  say(f'writing {_count(contents)} to {path}')
  arrays: dict[str, Any] = {'name': name, 'class_names': contents.names['label']}
  for split, (images, labels) in contents.splits.items():
    arrays |= {f'{split}_x': images, f'{split}_y': labels['label'].astype(np.int32)}
  with file_errors(path), complete(path) as part:
    np.savez(part, **arrays)
  return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres prepare`."""
  parser.add_argument('what', metavar='{' + ','.join(_OPTIONS) + '}', help='a published set, or what DIR is')
  parser.add_argument('dir', metavar='DIR', nargs='?', help='a folder of images; a version of a TFDS set in tfrecord')
  parser.add_argument('--data_dir', metavar='DIR', help='where it goes; $TFDS_DATA_DIR, else ~/tensorflow_datasets')
  parser.add_argument('--name', help='folder: what the set is called; as DIR where it is not given')
  parser.add_argument('--max_bad', type=int, metavar='N', help='folder: leave out up to N images that are damaged')
  parser.add_argument('--archive', metavar='FILE', help='cifar: the published binary archive, not to download it')
  parser.add_argument('--npz', metavar='FILE', help='write one .npz file instead: needs no array_record (not on Linux)')
  parser.add_argument('--image_size', type=int, metavar='S', help='folder, with --npz: pixels a side')


def run(args: argparse.Namespace) -> None:
  """Prepare a data set and print where it is and the command that trains on it."""
  _check_options(args)
  make = {'folder': _run_folder, 'tfrecord': _run_tfrecord}.get(args.what, _run_cifar)
  name, place, command = make(args)
  print(printable(f'{name} is in {place}'))
  print(printable('train on it: ' + ' '.join(['python main.py --config', *command])))


def _run_cifar(args: argparse.Namespace) -> tuple[str, pathlib.Path, list[str]]:
  """Return the set's name and place, and the words that train on it."""
  command = ['configs/resnet20_cifar_quick.py --workdir runs/quick']
  if args.npz:
    place = prepare_npz(args.what, args.npz, args.archive)
    return args.what, place, [*command, *_npz_flags(place)]
  place = prepare(args.what, args.data_dir, args.archive)
  named = [] if args.what == 'cifar10' else [f'--config.data.name={args.what}']
  return args.what, place, [*command, *named, *_data_dir_flag(args)]


def _run_folder(args: argparse.Namespace) -> tuple[str, pathlib.Path, list[str]]:
  """Return the set's name and place, and the words that train on it."""
  max_bad = args.max_bad or 0
  if not args.npz:
    return _trains_on(args, pack.pack(args.dir, args.name or pack.name_of(args.dir), args.data_dir, max_bad))
  place = pack.pack_npz(args.dir, args.npz, args.image_size, max_bad)
  return place.stem, place, [f'configs/digits.py --workdir {shell_word(f"runs/{place.stem}")}', *_npz_flags(place)]


def _run_tfrecord(args: argparse.Namespace) -> tuple[str, pathlib.Path, list[str]]:
  """Return the set's name and place, and the words that train on it."""
  return _trains_on(args, tfrecord.convert(args.dir, args.data_dir))


def _trains_on(args: argparse.Namespace, place: pathlib.Path) -> tuple[str, pathlib.Path, list[str]]:
  name = place.parent.relative_to(prepared.root(args.data_dir)).as_posix()
  command = [f'configs/digits.py --workdir runs/{name.replace("/", "_")} --config.data.name={name}']
  size = [f'--config.data.image_size={IMAGE_SIZE}'] if prepared.sizes_vary(place) else []
  return name, place, [*command, *_data_dir_flag(args), *size]


def _npz_flags(place: pathlib.Path) -> list[str]:
  return ['--config.data.name=arrays', f'--config.data.path={shell_word(str(place))}']


def _data_dir_flag(args: argparse.Namespace) -> list[str]:
  return [f'--config.data.data_dir={shell_word(args.data_dir)}'] if args.data_dir else []


def _check_options(args: argparse.Namespace) -> None:
  """Raise an InputError where an option is missing or goes with another word."""
  if args.what not in _OPTIONS:
    raise InputError(f'cannot prepare {args.what!r}{nearest(args.what, _OPTIONS)}')
  for option in ('dir', 'name', 'data_dir', 'max_bad', 'archive', 'npz', 'image_size'):
    if getattr(args, option) is not None and option not in _OPTIONS[args.what]:
      found = args.dir if option == 'dir' else f'--{option}'
      raise InputError(f'`jaxres prepare {args.what}` takes no {found}')
  if args.npz and args.data_dir:
    raise InputError('--npz FILE and --data_dir DIR are two places to write to; give one of them')
  if args.what in ('folder', 'tfrecord') and args.dir is None:
    raise InputError(f'`jaxres prepare {args.what}` needs DIR; `jaxres prepare --help`')
  if args.what == 'folder' and bool(args.npz) != (args.image_size is not None):
    raise InputError('--npz FILE and --image_size S go together')
  if args.npz and args.name:
    raise InputError('--name NAME is of a TFDS set and --npz FILE another thing; give one of them')


def _published(name: str) -> Published:
  if name not in PUBLISHED:
    raise InputError(f'cannot prepare {name!r}{nearest(name, PUBLISHED)}')
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
    found = str(load_npz(path, 'name')['name'])
  except ValueError as error:
    raise InputError(f'{path} exists and is not {name}: remove it or choose another name') from error
  if found != name:
    raise InputError(f'{path} exists and holds {found}, not {name}: choose another name')
