"""Arguments that say which network: a run, or weights of any kind."""

import argparse
from typing import Any

from jaxres import predict
from jaxres.errors import InputError
from jaxres.weights import presets, sources


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments that say what ``predict.load`` reads; ``read_predictor`` calls it with them."""
  default = sources.DEFAULT_STEP
  parser.add_argument('--step', default=default, metavar='N', help=f'of a run: {sources.STEP_HELP}')
  add_preprocessing(parser)


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
  """Add the arguments that say what is done to an image, and how classes are called."""
  parser.add_argument(
    '--preset', metavar='NAME', help=f'mean, std, size and crop by name: {", ".join(presets.PRESETS)}'
  )
  parser.add_argument('--class_names', metavar='FILE', help='text: a class name a line, in the order of the logits')
  parser.add_argument('--image_size', type=int, metavar='N', help="pixels a side, in place of the source's own")
  parser.add_argument('--mean', metavar='X,X,X', help='of each channel, 0 to 1, where the weights do not say theirs')
  parser.add_argument('--std', metavar='X,X,X', help='of each channel, 0 to 1, where the weights do not say theirs')
  parser.add_argument(
    '--center_crop',
    type=float,
    metavar='X',
    help="the share of the short side that is kept, in place of the source's own",
  )


def read_predictor(args: argparse.Namespace) -> predict.Predictor:
  """Return what ``load`` reads as the arguments of ``add_source_arguments`` say. Raises as that."""
  return predict.load(args.source, args.step, **read_preprocessing(args))


def read_preprocessing(args: argparse.Namespace) -> dict[str, Any]:
  """Return what the arguments of ``add_preprocessing`` say, by the arguments of ``predict.load``."""
  mean, std = (read_numbers(f'--{name}', getattr(args, name)) for name in ('mean', 'std'))
  names = ('class_names', 'image_size', 'center_crop', 'preset')
  return {'mean': mean, 'std': std} | {name: getattr(args, name) for name in names}


def read_numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
  """Return the numbers of a flag such as ``--mean``; None where it was not given.

  Raises:
    InputError: they are no numbers with commas.
  """
  try:
    return None if text is None else tuple(float(word) for word in text.strip('()[]').split(','))
  except ValueError:
    raise InputError(flag, expected='numbers with commas, such as 0.485,0.456,0.406', found=repr(text)) from None
