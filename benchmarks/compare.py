"""The commands that measure jaxres beside its peers: `train_step.py` and `inference.py`."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import harness, sides

Works = Mapping[str, Callable[[argparse.Namespace], harness.Work]]
Limit = Callable[[argparse.Namespace], Mapping[str, float]]


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
  parser.add_argument('--peer', nargs='*', default=[], choices=[side for side in works if side != 'jaxres'])
  parser.add_argument('--seconds', type=float, default=5.0, help='of a round of one side')
  args = sides.parse(parser)
  if args.side == 'limit':
    assert limit
    harness.answer(**limit(args))
  elif args.side:
    harness.serve(lambda: works[args.side](args))
  else:
    harness.report(measure(benchmark, args, has_limit=limit is not None), args.out)


def measure(benchmark: str, args: argparse.Namespace, has_limit: bool) -> list[dict[str, Any]]:
  """Return a row for each side; each is this same command, told which side it is."""
  context = {'benchmark': benchmark} | sides.describe(args) | harness.machine()
  limit = harness.ask('limit', harness.this_command('limit')) if has_limit else {}
  with harness.opened({side: harness.this_command(side) for side in ('jaxres', *args.peer)}) as opened:
    found = harness.interleave(opened, args.rounds, args.seconds)
    facts = {side.name: side.facts for side in opened}
  rows = harness.summarize(found, 'jaxres')
  for row in rows if limit else ():
    row['share_of_limit'] = round(row['images_per_s'] / limit['limit_images_per_s'], 4)
  return [row | harness.rounded(facts[row['side']] | limit) | context for row in rows]
