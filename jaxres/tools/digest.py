"""`jaxres digest`: one SHA-256 of all that a checkpoint holds, to compare two runs by."""

import argparse
import pathlib

from jaxres import workdir
from jaxres.checkpoint import digests
from jaxres.errors import printable
from jaxres.paths import user_path
from jaxres.weights import sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the tool's arguments."""
  parser.add_argument('workdir', help='of a run, or of a series such as of seeds')
  parser.add_argument('--step', type=int, help='of a checkpoint; the newest where it is not given')
  parser.add_argument('--leaves', action='store_true', help='print also the digest of each array')


def run(args: argparse.Namespace) -> None:
  """Print the digest of a checkpoint of a run, or of each of a series."""
  directory = user_path(args.workdir)
  series = sources.runs_in(directory)
  for run in series or [directory]:
    print_digest(run, args.step, args.leaves, f', {run}' if series else '')


def print_digest(run: pathlib.Path, step: int | None, leaves: bool, end: str = '') -> None:
  """Print the digest of a checkpoint, read completely and compared with what was saved; ``end`` ends the line."""
  step, saved = workdir.read_step(run, step)
  if leaves:
    print('\n'.join(printable(f'{digest}  {name}') for name, digest in saved.digests.items()))
    print(printable(f'{digests.json_digest(digests.without_speeds(saved.progress))}  progress'))
  verified = 'verified' if saved.verified else 'not verified: an older jaxres saved it'
  digest = digests.state_digest(saved.digests, saved.progress)
  print(printable(f'{digest}  step {step}, {len(saved.digests)} arrays, {verified}{end}'))
