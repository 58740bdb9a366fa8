"""`jaxres digest`: one SHA-256 of all that a checkpoint holds, by which two runs are told to be the same."""

import argparse
import pathlib
from collections.abc import Mapping

from jaxres import checkpoint, integrity
from jaxres import workdir as workdir_lib
from jaxres.errors import InputError, printable
from jaxres.paths import check_utf8, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the tool's arguments."""
  parser.add_argument('workdir', help='of a run')
  parser.add_argument('--step', type=int, help='of a checkpoint; the newest where it is not given')
  parser.add_argument('--leaves', action='store_true', help='print also the digest of each array')


def run(args: argparse.Namespace) -> None:
  """Print the digest of a checkpoint, which is read whole and compared with what was saved."""
  step, saved = load(user_path(args.workdir), args.step)
  if args.leaves:
    print('\n'.join(f'{digest}  {printable(name)}' for name, digest in saved.digests.items()))
    print(f'{integrity.json_digest(integrity.without_speeds(saved.progress))}  progress')
  verified = 'verified' if saved.verified else 'not verified: an older jaxres saved it'
  print(
    f'{integrity.state_digest(saved.digests, saved.progress)}  step {step}, {len(saved.digests)} arrays, {verified}'
  )


def load(workdir: pathlib.Path, step: int | None) -> tuple[int, integrity.Saved]:
  """Return the number of a checkpoint in ``workdir``, the newest where ``step`` is None, and the checkpoint.

  Raises:
    InputError: it is missing or damaged, or of another run.
  """
  directory = check_utf8(workdir).absolute() / 'checkpoints'

  def choose(paths: Mapping[int, pathlib.Path]) -> int:
    if not paths:
      raise InputError(f'{directory}: no checkpoint there; expected the workdir of a run that has saved one')
    if step is not None and step not in paths:
      raise InputError(f'--step: {directory} has no step {step}; there are {", ".join(map(str, paths))}')
    return max(paths) if step is None else step

  number, path, saved = integrity.follow(directory, choose)
  checkpoint.check_made_by(saved.about, workdir_lib.read_json(workdir, 'config.json'), path)
  return number, saved
