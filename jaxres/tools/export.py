"""`jaxres export`."""

import argparse

from jaxres.errors import InputError, printable
from jaxres.export import bundle, formats
from jaxres.paths import user_path
from jaxres.tools.arguments import add_source_arguments, read_preprocessing
from jaxres.weights import bundle as reader
from jaxres.weights import sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres export`."""
  sources_help = 'a run, a torch file, torchvision:NAME, of `jaxres convert`, or a bundle'
  parser.add_argument('source', metavar='SOURCE', help=sources_help)
  parser.add_argument('target', metavar='OUT', nargs='?', help='a new directory; of a bundle, itself where left out')
  words = ', '.join(formats.list_formats())
  parser.add_argument(
    '--format', metavar='NAMES', help=f'with commas, of {words} ({formats.DEFAULT}); safetensors is always there'
  )
  parser.add_argument('--temperature', type=float, metavar='T', help='divides the logits before the probabilities')
  add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Write a bundle, and say what is in it."""
  place = user_path(sources.parse(args.source)[1])
  again = args.target is None
  if again and not reader.is_bundle(place):
    raise InputError('OUT', expected='a new directory', fix='only the files of a bundle are made again in place')
  target = place if again else user_path(args.target, 'OUT')
  if not again:
    bundle.check_target(target)
  words = args.format or (again and ','.join(formats.of_files([*reader.read_description(place)['files']])))
  names = formats.parse(words or (formats.ALWAYS if again else formats.DEFAULT))
  pretrained, about = bundle.read(args.source, args.step, args.temperature, **read_preprocessing(args))
  sizes = bundle.export(pretrained, about, target, names)
  print(printable(f'{target}: {pretrained.options["name"]} from {pretrained.origin}'))
  for name, size in sizes.items():
    print(printable(f'  {name:20} {bundle.format_size(size)}'))
  return 0
