"""`jaxres prepare`."""

import argparse
import pathlib

from jaxres.data.prepare import cifar as prepare_cifar
from jaxres.data.prepare import folder as prepare_folder
from jaxres.data.prepare import published
from jaxres.data.prepare import tfrecord as prepare_tfrecord
from jaxres.data.sources import tfds
from jaxres.data.sources.cifar import PUBLISHED
from jaxres.errors import InputError, nearest, printable
from jaxres.paths import shell_word

IMAGE_SIZE = 64  # pixels a side in the printed command, where images differ in size
_OPTIONS = {  # what goes with each word
  **dict.fromkeys(PUBLISHED, ('data_dir', 'archive', 'npz')),
  **dict.fromkeys(published.PUBLISHED, ('data_dir',)),
  'folder': ('dir', 'name', 'data_dir', 'max_bad', 'npz', 'image_size'),
  'tfrecord': ('dir', 'data_dir'),
}


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
  makers = {'folder': _run_folder, 'tfrecord': _run_tfrecord} | dict.fromkeys(published.PUBLISHED, _run_published)
  make = makers.get(args.what, _run_cifar)
  name, place, command = make(args)
  print(printable(f'{name} is in {place}'))
  print(printable('train on it: ' + ' '.join(['python main.py --config', *command])))


def _run_cifar(args: argparse.Namespace) -> tuple[str, pathlib.Path, list[str]]:
  """Return the set's name and place, and the words that train on it."""
  command = ['configs/resnet20_cifar_quick.py --workdir runs/quick']
  if args.npz:
    place = prepare_cifar.prepare_npz(args.what, args.npz, args.archive)
    return args.what, place, [*command, *_npz_flags(place)]
  place = prepare_cifar.prepare(args.what, args.data_dir, args.archive)
  named = [] if args.what == 'cifar10' else [f'--config.data.name={args.what}']
  return args.what, place, [*command, *named, *_data_dir_flag(args)]


def _run_published(args: argparse.Namespace) -> tuple[str, pathlib.Path, list[str]]:
  """Return the set's name and place, and the words that train on it."""
  return _trains_on(args, published.prepare(args.what, args.data_dir))


def _run_folder(args: argparse.Namespace) -> tuple[str, pathlib.Path, list[str]]:
  """Return the set's name and place, and the words that train on it."""
  max_bad = args.max_bad or 0
  if not args.npz:
    return _trains_on(
      args, prepare_folder.pack(args.dir, args.name or prepare_folder.name_of(args.dir), args.data_dir, max_bad)
    )
  place = prepare_folder.pack_npz(args.dir, args.npz, args.image_size, max_bad)
  return place.stem, place, [f'configs/digits.py --workdir {shell_word(f"runs/{place.stem}")}', *_npz_flags(place)]


def _run_tfrecord(args: argparse.Namespace) -> tuple[str, pathlib.Path, list[str]]:
  """Return the set's name and place, and the words that train on it."""
  return _trains_on(args, prepare_tfrecord.convert(args.dir, args.data_dir))


def _trains_on(args: argparse.Namespace, place: pathlib.Path) -> tuple[str, pathlib.Path, list[str]]:
  name = place.parent.relative_to(tfds.root(args.data_dir)).as_posix()
  command = [f'configs/digits.py --workdir runs/{name.replace("/", "_")} --config.data.name={name}']
  size = [f'--config.data.image_size={IMAGE_SIZE}'] if tfds.sizes_vary(place) else []
  return name, place, [*command, *_data_dir_flag(args), *size]


def _npz_flags(place: pathlib.Path) -> list[str]:
  return ['--config.data.name=arrays', f'--config.data.path={shell_word(str(place))}']


def _data_dir_flag(args: argparse.Namespace) -> list[str]:
  return [f'--config.data.data_dir={shell_word(args.data_dir)}'] if args.data_dir else []


def _check_options(args: argparse.Namespace) -> None:
  """Raise an InputError where an option is missing or goes with another word."""
  if args.what not in _OPTIONS:
    raise InputError('jaxres prepare', f'cannot prepare {args.what!r}', fix=nearest(args.what, _OPTIONS))
  for option in ('dir', 'name', 'data_dir', 'max_bad', 'archive', 'npz', 'image_size'):
    if getattr(args, option) is not None and option not in _OPTIONS[args.what]:
      place = args.dir if option == 'dir' else f'--{option}'
      raise InputError(f'jaxres prepare {args.what}', f'it takes no {place}')
  if args.npz and args.data_dir:
    raise InputError('--npz, --data_dir', 'two places to write to', fix='give one of them')
  if args.what in ('folder', 'tfrecord') and args.dir is None:
    raise InputError(f'jaxres prepare {args.what}', 'it needs DIR', fix='`jaxres prepare --help` shows what there is')
  if args.what == 'folder' and bool(args.npz) != (args.image_size is not None):
    raise InputError('--npz, --image_size', 'they go together', fix='give both')
  if args.npz and args.name:
    raise InputError('--npz, --name', '--name is of a TFDS set, and --npz writes a file', fix='give one of them')
