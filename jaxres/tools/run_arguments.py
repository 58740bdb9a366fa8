"""Arguments that say which runs, and where their data is."""

import argparse
from collections.abc import Mapping, Sequence

from jaxres.analysis import runs
from jaxres.errors import InputError, check_range
from jaxres.paths import user_path
from jaxres.weights import sources


def add_runs(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
  """Add the arguments that say which runs, and where their data is; ``read_runs`` reads what they name."""
  about = (
    'workdirs of training; one of --seeds or of crossval is all of its runs' if several else 'a workdir of training'
  )
  parser.add_argument('runs', metavar='RUN', nargs='+' if several else 1, help=about)
  parser.add_argument('--step', default=sources.DEFAULT_STEP, metavar='N', help=sources.STEP_HELP)
  parser.add_argument('--batch_size', type=int, metavar='N', help="images at a time; the run's own of evaluation")
  parser.add_argument('--data_dir', metavar='DIR', help='where TFDS data sets are now, where they have moved')
  parser.add_argument('--data_path', metavar='PATH', help='where the file or folder of the data is now')


def read_runs(args: argparse.Namespace, *, several: bool = True) -> list[runs.Run]:
  """Return the runs that the arguments of ``add_runs`` name.

  Raises:
    InputError: as ``runs.read_runs``; or the batch size is out of range.
  """
  check_range('--batch_size', args.batch_size, low=1)
  for flag, path in (('--data_dir', args.data_dir), ('--data_path', args.data_path)):
    if path:
      user_path(path, flag)
  inside = sources.runs_in(user_path(args.runs[0])) if not several else []
  if inside:
    raise InputError(args.runs[0], f'{len(inside)} runs are in it', fix=f'name one: {" ".join(map(str, inside[:8]))}')
  return runs.read_runs(args.runs, args.step, args.data_dir, args.data_path)


def check_keeps_data(trained: Sequence[runs.Run], outputs: Mapping[str, str | None]) -> None:
  """Raise InputError where a file to write, by its flag, is there and is the data of a run."""
  for flag, given in outputs.items():
    for path in (run.config['data'].get('path') for run in trained):
      if given and path and user_path(path).exists() and user_path(given).resolve() == user_path(path).resolve():
        raise InputError(flag, f'{given} is the data of the run', expected='another file to write')
