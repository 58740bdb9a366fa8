"""The commands that measure jaxres beside its peers: `train_step.py` and `inference.py`."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks import harness, sides

Works = Mapping[str, Callable[[argparse.Namespace], harness.Work]]
Limit = Callable[[argparse.Namespace], Mapping[str, float]]


class Peer(NamedTuple):
  """A side as ``--peer`` names it: ``SIDE[:DTYPE][@PYTHON]``, such as ``torch:bfloat16@/opt/py313/bin/python``."""

  side: str
  dtype: str | None  # that of the command where it is None
  python: str | None  # the interpreter that runs it; that of the command where it is None

  def command(self) -> list[str]:
    """Return the command of this process, told to be the side."""
    command = [self.python or sys.executable, *sys.argv, '--side', self.side]
    return [*command, '--dtype', self.dtype] if self.dtype else command


def parse_peer(text: str) -> Peer:
  """Return the peer that ``SIDE[:DTYPE][@PYTHON]`` names."""
  name, _, python = text.partition('@')
  side, _, dtype = name.partition(':')
  return Peer(side, dtype or None, python or None)


def main(benchmark: str, description: str, works: Works, limit: Limit | None = None) -> None:
  """Measure ``works`` in turns and report them, or be one of their sides.

  Args:
    benchmark: its name in the results.
    description: of the command.
    works: by side; ``jaxres`` and those that ``--peer`` names are measured.
    limit: returns ``limit_images_per_s``, which speeds are then shares of.
  """
  parser = argparse.ArgumentParser(description=description)
  sides.add_arguments(parser)
  harness.add_arguments(parser)
  parser.add_argument('--peer', nargs='*', default=[], help=f'SIDE[:DTYPE][@PYTHON], SIDE of {", ".join(works)}')
  parser.add_argument('--seconds', type=float, default=5.0, help='of a round of one side')
  args = sides.parse(parser)
  for peer in args.peer:
    if parse_peer(peer).side not in works:
      parser.error(f'--peer {peer}: no such side; there are {", ".join(works)}')
  if args.side == 'limit':
    assert limit
    harness.answer(**limit(args))
  elif args.side:
    harness.serve(lambda: works[args.side](args))
  else:
    harness.report(measure(benchmark, args, has_limit=limit is not None), args.out)


def measure(benchmark: str, args: argparse.Namespace, has_limit: bool) -> list[dict[str, Any]]:
  """Return a row for each side; each is this same command, told which side it is, in the Python that it names."""
  context = {'benchmark': benchmark} | sides.describe(args) | harness.machine()
  limit = harness.ask('limit', harness.this_command('limit')) if has_limit else {}
  commands = {peer: parse_peer(peer).command() for peer in args.peer}
  with harness.open_sides({'jaxres': harness.this_command('jaxres'), **commands}) as opened:
    rounds = harness.interleave(opened, args.rounds, args.seconds)
    facts = {side.name: side.facts for side in opened}
  rows = harness.summarize(rounds, 'jaxres')
  for row in rows if limit else ():
    row['share_of_limit'] = round(row['images_per_s'] / limit['limit_images_per_s'], 4)
  rows = [context | row | harness.round_facts(facts[row['side']] | limit) for row in rows]
  return [row | {'side': label(row)} for row in rows]


def label(row: Mapping[str, Any]) -> str:
  """Return the name of a side in the results: its Python by version, not by the path of an interpreter."""
  side, _, python = row['side'].partition('@')
  return f'{side}@{row["python"].rpartition(".")[0]}' if python else side
