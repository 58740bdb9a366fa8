"""What it costs that "saved" is printed only for what was read back: the share of the time of a training.

python benchmarks/read_back.py --config configs/resnet20_cifar_quick.py --config.data.limit=1280 --config.train.epochs=2

Two sides take turns, each in one process that runs the loop of main.py again and again from the first step, with its
evaluations and one save an epoch: one reads back what it saved, the other does not. ``share`` is the part of the images
a second that reading back takes, by round; ``look_s`` is one look at a saved checkpoint with nothing beside it, and
``look_share`` is that of the time of an epoch. Fewer examples make shorter epochs, and so a larger share than that of
the config as it is. Prints one JSON line a side and a table.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness
from jaxres import command_line
from jaxres import config as config_lib
from jaxres.errors import one_line

SIDES = ('read back', 'not read back')
LOOKS = 5


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--config', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--seconds', type=float, default=20, help='of a side in a round')
  harness.add_arguments(parser)
  args, overrides = parser.parse_known_args()
  with one_line():
    config = config_lib.to_dict(config_lib.complete(command_line.load(args.config, overrides)))
  if args.side:
    harness.serve(lambda: build(config, reads=args.side == SIDES[0]))
    return
  with harness.open_sides({name: harness.this_command(name) for name in SIDES}) as sides:
    facts = {side.name: side.facts for side in sides}
    rounds = harness.interleave(sides, args.rounds, args.seconds)
  context = {'benchmark': 'read_back', 'config': args.config, 'overrides': overrides} | harness.machine()
  harness.report([row | context for row in summarize(rounds, facts)], args.out)


def build(config: Mapping[str, Any], *, reads: bool) -> harness.Work:
  """Return the work of a side: trainings of ``config`` from the first step to the last, each in a new workdir."""
  from jaxres import workdir as workdir_lib
  from jaxres.log.console import console
  from jaxres.runtime import signals
  from jaxres.train import loop
  from jaxres.train.setup import make_setup

  console.quiet = True
  setup = make_setup(config)
  setup.dataset.place(setup.mesh)
  facts: dict[str, Any] = {'epochs': len(setup.plan.eval_steps)}

  def run(times: int) -> None:
    for _ in range(times):
      with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        with (
          workdir_lib.open(workdir, config, setup.dataset.info, **config['checkpoint']) as manager,
          signals.guard_preemption() as watch,
        ):
          if not reads:
            manager.read_back = lambda *_: None  # type: ignore[method-assign]
          loop.train(setup, workdir, manager, None, watch)
        if 'look_s' not in facts:
          facts.update(time_looks(workdir))

  return harness.Work(run, setup.plan.eval_steps[-1] * setup.dataset.train.batch_size, facts)


def time_looks(workdir: pathlib.Path) -> dict[str, float]:
  """Return the seconds, the median of a few, that a look at the newest checkpoint takes as a save has it."""
  from jaxres.checkpoint import reader, steps

  path = workdir.absolute() / 'checkpoints' / str(steps.list_steps(workdir / 'checkpoints')[-1])
  known, took = json.loads((path / 'digests/metadata').read_text()), []
  for _ in range(LOOKS):
    clock = time.perf_counter()
    assert reader.difference(path, known) is None
    took.append(time.perf_counter() - clock)
  return {'look_s': statistics.median(took)}


def summarize(
  rounds: Mapping[str, list[dict[str, float]]], facts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Return a row for each side, that of the first with the shares of its time that reading back takes."""
  rows = harness.summarize(rounds, SIDES[1])
  first, images_an_epoch = rows[0], facts[SIDES[0]]['images'] / facts[SIDES[0]]['epochs']
  pairs = list(zip(rounds[SIDES[0]], rounds[SIDES[1]], strict=True))
  shares = [1 - reading['images_per_s'] / plain['images_per_s'] for reading, plain in pairs]
  first['share'] = round(statistics.median(shares), 4)
  first['share_spread'] = [round(min(shares), 4), round(max(shares), 4)]
  first['look_s'] = round(facts[SIDES[0]]['look_s'], 4)
  first['look_share'] = round(first['look_s'] * first['images_per_s'] / images_an_epoch, 6)
  return rows


if __name__ == '__main__':
  main()
