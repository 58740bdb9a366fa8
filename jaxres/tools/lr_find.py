"""`jaxres lr-find`."""

import argparse

from jaxres import command_line
from jaxres.analysis import lr_find
from jaxres.errors import printable
from jaxres.files import file_errors
from jaxres.paths import output_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres lr-find`."""
  parser.add_argument('--config', metavar='FILE', required=True, help='as of train; --config.section.field=value too')
  parser.add_argument('--lowest', type=float, default=1e-5, metavar='X', help='the first learning rate (1e-5)')
  parser.add_argument('--highest', type=float, default=10.0, metavar='X', help='the last (10)')
  parser.add_argument('--steps', type=int, default=100, metavar='N', help='from the first to the last (100)')
  parser.add_argument('--out', metavar='FILE', default='lr_find.png', help='the picture to write (lr_find.png)')


def run(args: argparse.Namespace) -> int:
  """Test the range, draw it and print the suggestion; return 1 where there is none."""
  out = output_path(args.out, '--out')
  config = command_line.load(args.config, args.overrides)
  result = lr_find.run(config, args.lowest, args.highest, args.steps)
  with file_errors(out):
    out.parent.mkdir(parents=True, exist_ok=True)
    lr_find.draw(result, out)
  print(printable(f'picture: {out}'))
  if result.suggestion is None:
    print(printable(f'no suggestion: the loss did not fall from {args.lowest:g} on; try a smaller --lowest'))
    return 1
  end = f'the loss ran away at {result.rates[-1]:.2g}' if result.diverged else 'it did not run away'
  lowest = result.suggestion * lr_find.DIVISOR
  print(printable(f'the smoothed loss is lowest at a learning rate of about {lowest:.1g}; {end}'))
  print(f'suggestion, a tenth of that: --lr {result.suggestion:g}')
  return 0
