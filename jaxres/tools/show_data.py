"""`jaxres show-data`: a picture of what the model sees, images in the first column and their augmentations beside."""

import argparse

from jaxres import command_line
from jaxres import config as config_lib
from jaxres.analysis import images
from jaxres.errors import check_range, printable
from jaxres.train.setup import make_setup


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres show-data`."""
  parser.add_argument('--config', metavar='FILE', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--out', metavar='FILE', required=True, help='the picture to write, such as grid.png')
  parser.add_argument('--examples', type=int, default=8, metavar='N', help='rows: training images (8)')
  parser.add_argument('--draws', type=int, default=8, metavar='N', help='columns beside the originals (8)')


def run(args: argparse.Namespace) -> None:
  """Write the picture and say where it is."""
  for name in ('examples', 'draws'):
    check_range(f'--{name}', getattr(args, name), low=1)
  out = images.check_path('--out', args.out)
  setup = make_setup(config_lib.to_dict(command_line.load(args.config, args.overrides)))
  grid = images.draw_augmentations(
    setup.dataset, setup.augment, setup.options.seed, args.examples, args.draws, setup.task.labels
  )
  images.write(out, images.make_picture(grid))
  seen = f'{len(grid)} training images, the originals on the left, then steps 0 to {args.draws - 1}'
  print(printable(f'{out}: {seen}'))
