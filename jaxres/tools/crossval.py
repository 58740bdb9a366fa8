"""`jaxres crossval`."""

import argparse

from jaxres import command_line
from jaxres.errors import check_range
from jaxres.log.console import console
from jaxres.sweep import crossval


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres crossval`."""
  parser.add_argument('--config', metavar='FILE', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--workdir', metavar='DIR', required=True, help='gets a run for each fold, and folds.json')
  parser.add_argument('--folds', type=int, default=5, metavar='N', help='how many (5)')


def run(args: argparse.Namespace) -> None:
  """Train, and print the table; what counts are the metrics of val, the held-out fold."""
  check_range('--folds', args.folds, low=2)
  crossval.cross_validate(command_line.load(args.config, args.overrides), args.workdir, args.folds)
  console.print('val is the fold that was held out; training examples of folds overlap: the interval is too narrow')
