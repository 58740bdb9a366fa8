"""`jaxres benchmark`."""

import argparse
import json
import pathlib

from jaxres.errors import check_range, print_status, printable
from jaxres.export import benchmark
from jaxres.export import bundle as writer
from jaxres.export.network import make_images
from jaxres.files import write_atomic
from jaxres.paths import output_path, user_path
from jaxres.weights import bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres benchmark`."""
  parser.add_argument('bundle', metavar='BUNDLE', help='of `jaxres export`')
  parser.add_argument(
    '--run', dest='workdir', metavar='RUN', help='the run whose data is used; the one that the bundle is of'
  )
  parser.add_argument('--split', default='test', choices=('test', 'val'), help='of its data (test)')
  parser.add_argument('--limit', type=int, metavar='N', help='take the first N examples')
  parser.add_argument('--data_dir', metavar='DIR', help='where TFDS data sets are now, if not where they were')
  parser.add_argument('--data_path', metavar='PATH', help='where the file or folder of the data is now')
  parser.add_argument('--seconds', type=float, default=3.0, metavar='S', help='of each batch size (3)')
  parser.add_argument('--out', metavar='FILE', help='JSON; a picture goes beside it, as .png')


def run(args: argparse.Namespace) -> int:
  """Measure, and print a table."""
  directory = user_path(args.bundle)
  out = output_path(args.out, '--out') if args.out else None
  check_range('--limit', args.limit, low=1)
  description = bundle.read_description(directory)
  place = user_path(args.workdir or description['source'])
  if args.workdir or (place / 'config.json').is_file():
    moved = {'data_dir': args.data_dir, 'path': args.data_path}
    images, labels = benchmark.read_examples(place, args.split, **moved)
    images, labels = images[: args.limit], labels[: args.limit]
  else:
    print_status(f'{place}: no run there: random images, and no top-1; --run says where it is')
    network = writer.make_network(*writer.read(f'jaxres:{directory}', 'best'))
    images, labels = make_images(network, args.limit or 64), None
  result = benchmark.run(directory, images, labels, args.seconds)
  for line in benchmark.format_table(result):
    print(printable(line))
  print(printable(f'{result["examples"]:,} examples; CPU: {" ".join(result["cpu_flags"]) or "unknown"}'))
  if out:
    write_atomic(out, json.dumps({'bundle': str(directory), 'versions': description['versions'], **result}, indent=2))
    benchmark.draw(result, pathlib.Path(out).with_suffix('.png'))
    print(printable(f'written: {out}, {out.with_suffix(".png")}'))
  return 0
