"""`jaxres convert`: weights of a torch ResNet to a directory of jaxres, and back from there or from a run."""

import argparse
import importlib.util
import pathlib

import jax

from jaxres import weights
from jaxres.errors import InputError, printable
from jaxres.paths import output_path, user_path
from jaxres.weights import directories, parity, sources
from jaxres.weights.network import Pretrained
from jaxres.weights.writer import SUFFIXES


def report(pretrained: Pretrained) -> bool:
  """Print the parity report and return whether all is well.

  With torch, it is the differences of activations; without, the names, the shapes and a checksum of the state dict.
  """
  if importlib.util.find_spec('torch'):
    errors = parity.check(pretrained)
    print(
      f'jaxres and torch on 2 random images of {parity.SIZE}x{parity.SIZE}: largest difference, of the largest value'
    )
    print('  both compute the network named above: a stem, an activation or a stride that it has not is not seen here')
    for name, error in errors.items():
      print(printable(f'  {name:8} {error:.1e}'))
    worst = max(errors.values())
    well = bool(worst < parity.TOLERANCE)  # not where it is no number
    print(f'{"equal" if well else "NOT equal"} within {parity.TOLERANCE:.0e}')
    return well
  state_dict = pretrained.state_dict()
  print('torch is not installed: names, shapes and a checksum only')
  for name, value in state_dict.items():
    print(printable(f'  {name} {list(value.shape)}'))
  print(printable(f'sha256 of names, shapes and values: {weights.digest(state_dict)}'))
  return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres convert`."""
  parser.add_argument('source', metavar='SOURCE', help='a torch file, torchvision:NAME, a run, or what this tool wrote')
  parser.add_argument('target', metavar='TARGET', help=f'a directory, or a file ending in {", ".join(SUFFIXES)}')
  parser.add_argument(
    '--step', default='best', metavar='N', help="of a run: 'best' (by validation, the default), 'latest' or a number"
  )
  parser.add_argument(
    '--skip', action='append', default=[], metavar='REGEX', help='of a torch file: tensors to leave out, such as aux.*'
  )
  parser.add_argument(
    '--prefix', metavar='WORDS', help='of a torch file with several networks: the one that is meant, such as ema_model'
  )
  parser.add_argument(
    '--stem',
    choices=('cifar', 'cifar_pool'),
    help='of a torch file with a 3x3 stem: with no max-pool, or with one',
  )
  parser.add_argument('--class_names', metavar='FILE', help='text: a class name a line, in the order of the logits')
  parser.add_argument('--check', action='store_true', help='compare the activations of jaxres with those of torch')


def run(args: argparse.Namespace) -> int:
  """Convert, say what was found, and return 1 where the parity report is bad."""
  target = user_path(args.target)
  to_file = target.suffix in SUFFIXES
  _check_target(target, to_file)
  source = user_path(sources.parse(args.source)[1])
  if to_file and source.exists() and target.exists() and target.samefile(source):
    raise InputError(target, 'it is the source, and would be replaced', fix='give another name')
  network = sources.read(args.source, args.step, args.skip, args.prefix, args.stem)
  if args.class_names:
    network = network._replace(class_names=sources.read_class_names(args.class_names, network.options['num_classes']))
  leaves = jax.tree.leaves(network.variables['params'])
  options = ', '.join(f'{key}={value!r}' for key, value in network.options.items() if key != 'name')
  size = sum(x.size for x in leaves)
  print(printable(f'{network.options["name"]} ({options}), {network.channels} channels, {size:,} parameters'))
  for note in network.notes:
    print(printable(note))
  well = report(network) if args.check else True
  if to_file:
    weights.write(target, network.state_dict())
  else:
    directories.write(target, network)
  print(printable(f'{target}: from {network.origin}'))
  return 0 if well else 1


def _check_target(target: pathlib.Path, to_file: bool) -> None:
  """Raise InputError where nothing can be written to ``target``, before anything is read."""
  if target.suffix and not (to_file or target.exists()):
    expected = f'a name that ends in {", ".join(SUFFIXES)}, or a directory (make it first where its name has a dot)'
    raise InputError(target, f'cannot write {target.suffix} files', expected=expected)
  if to_file:
    output_path(target, 'TARGET')
  if not to_file and (target.is_file() or (target / 'config.json').exists()):
    kind = 'a file' if target.is_file() else 'the workdir of a run'
    raise InputError(target, kind, expected=f'a directory to write to, or a file ending in {", ".join(SUFFIXES)}')
