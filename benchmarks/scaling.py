"""What several devices cost and gain: the same training step on one device and on several.

python benchmarks/scaling.py --model resnet18 --stem cifar --batch_size 64 --devices 1 2 4 8

The devices are virtual ones of this CPU, which share its cores, so that at best a step takes as long on all as on one;
or with ``--gpus`` real ones. The batch is the same on any number of them, or with ``--weak`` so large on each. Prints
one JSON line a side and a table: wall and CPU time an image, how many times those of one device they are, the share
of perfect scaling that is reached, and the collectives in the compiled step.
"""

import argparse
import collections
import os
import pathlib
import re
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness, sides

_COLLECTIVE = re.compile(
  r' (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\('
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  sides.add_arguments(parser)
  harness.add_arguments(parser)
  parser.add_argument('--devices', type=int, nargs='+', default=[1, 2, 4, 8], help='the first is compared with')
  parser.add_argument('--bn', default='global', choices=('global', 'per_device', 'frozen'))
  parser.add_argument('--shard_optimizer', action='store_true', help='each device holds its part alone')
  parser.add_argument('--weak', action='store_true', help='--batch_size is that of each device')
  parser.add_argument('--gpus', action='store_true', help='of this machine, rather than virtual CPU devices')
  parser.add_argument('--seconds', type=float, default=5.0, help='of a round of one side')
  args = sides.parse(parser)
  for count in () if args.weak else args.devices:
    if args.batch_size % count:
      raise SystemExit(f'--batch_size: {args.batch_size} is not divided by {count} devices')
  if args.side:
    harness.serve(lambda: build(args))
  else:
    harness.report(measure(args), args.out)


def build(args: argparse.Namespace) -> harness.Work:
  """Return the training step over the devices of this process."""
  import jax

  if args.weak:
    args.batch_size *= jax.device_count()
  made = sides.jaxres_step(args, bn=args.bn, shard_optimizer=args.shard_optimizer)
  start = time.perf_counter()
  program = made.lower().compile().as_text()
  facts = {'compile_s': time.perf_counter() - start, 'device_count': jax.device_count()}
  return sides.training(made, args.batch_size, **facts, collectives=collectives(program))


def collectives(program: str) -> dict[str, int]:
  """Return how often an HLO program has each kind of collective."""
  return dict(sorted(collections.Counter(_COLLECTIVE.findall(program)).items()))


def environment(devices: int, gpus: bool) -> dict[str, str]:
  """Return the environment variables that make a process see ``devices`` devices."""
  if gpus:
    return {'CUDA_VISIBLE_DEVICES': ','.join(map(str, range(devices)))}
  others = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'host_platform_device_count' not in flag]
  count = f'--xla_force_host_platform_device_count={devices}'
  return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join([*others, count])}


def efficiency(row: dict[str, Any], count: int, first: int, gpus: bool) -> float:
  """Return the share of perfect scaling from ``first`` devices to ``count`` that ``row`` reaches.

  Virtual devices share the cores of one CPU: to be as fast as one is all that they can do.
  """
  return round((first / count if gpus else 1) / row['single_is_times_as_fast'], 3)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
  """Return a row for each number of devices."""
  context = {'benchmark': 'scaling', 'devices': args.devices, 'gpus': args.gpus, 'bn': args.bn, 'weak': args.weak}
  context |= {'shard_optimizer': args.shard_optimizer}
  context |= sides.describe(args) | harness.machine()
  if not args.gpus:
    context['device'] = harness.processor_name()
  counts = {f'over {count}' if i else 'single': count for i, count in enumerate(args.devices)}
  environments = {side: environment(count, args.gpus) for side, count in counts.items()}
  with harness.open_sides({side: harness.this_command(side) for side in counts}, environments) as opened:
    rounds = harness.interleave(opened, args.rounds, args.seconds)
    facts = {side.name: side.facts for side in opened}
  for side, count in counts.items():
    if facts[side]['device_count'] != count:
      raise SystemExit(f'--devices: asked for {count}, found {facts[side]["device_count"]}')
  rows = harness.summarize(rounds, 'single')
  for row in rows:
    row['efficiency'] = efficiency(row, counts[row['side']], args.devices[0], args.gpus)
  return [row | harness.round_facts(facts[row['side']]) | context for row in rows]


if __name__ == '__main__':
  main()
