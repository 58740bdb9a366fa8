"""Arguments that several tools share."""

import argparse

from jaxres import predict
from jaxres.analysis import runs
from jaxres.errors import InputError
from jaxres.paths import user_path
from jaxres.weights import sources


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments that say what ``load`` reads; ``of_arguments`` calls it with them."""
  default = sources.DEFAULT_STEP
  parser.add_argument('--step', default=default, metavar='N', help=f'of a run: {sources.STEP_HELP}')
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
  mean, std = (_numbers(f'--{name}', getattr(args, name)) for name in ('mean', 'std'))
  options = {'mean': mean, 'std': std, 'center_crop': args.center_crop}
  return predict.load(args.source, args.step, args.class_names, args.image_size, **options)


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
  try:
    return None if text is None else tuple(float(word) for word in text.strip('()[]').split(','))
  except ValueError:
    raise InputError(f'{flag}: expected numbers with commas, such as 0.485,0.456,0.406; found {text!r}') from None


def add_runs(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
  """Add the arguments that say which runs, and where their data is; ``of_arguments`` reads what they name."""
  about = (
    'workdirs of training; one of --seeds or of crossval is all of its runs' if several else 'a workdir of training'
  )
  parser.add_argument('runs', metavar='RUN', nargs='+' if several else 1, help=about)
  parser.add_argument('--step', default=sources.DEFAULT_STEP, metavar='N', help=sources.STEP_HELP)
  parser.add_argument('--batch_size', type=int, metavar='N', help="images at a time; the run's own of evaluation")
  parser.add_argument('--data_dir', metavar='DIR', help='where TFDS data sets are now, where they have moved')
  parser.add_argument('--data_path', metavar='PATH', help='where the file or folder of the data is now')


def read_runs(args: argparse.Namespace, *, several: bool = True) -> list[runs.Run]:
  """Return the runs that the arguments of ``add_arguments`` name.

  Raises:
    InputError: as ``read``; or the batch size is out of range.
  """
  if args.batch_size is not None and args.batch_size < 1:
    raise InputError(f'--batch_size: expected 1 or more, found {args.batch_size}')
  for flag, path in (('--data_dir', args.data_dir), ('--data_path', args.data_path)):
    if path:
      user_path(path, flag)
  inside = sources.runs_in(user_path(args.runs[0])) if not several else []
  if inside:
    raise InputError(f'{args.runs[0]}: {len(inside)} runs are in it; name one: {" ".join(map(str, inside[:8]))}')
  return runs.read(args.runs, args.step, args.data_dir, args.data_path)
