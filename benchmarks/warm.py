"""Trainings of several seeds in one process, compiled once: what each reaches, and its seconds as airbench counts them.

python benchmarks/warm.py --config configs/speedrun_cifar.py --metric tta/test/top1 --seeds 10

``seconds`` go from a key to the score: the whitening of a stem that whitens, fresh weights, every step, one evaluation
of the views that ``--metric`` is of. Imports, reading the data, compiling and all that is written are not in them: some
steps and an evaluation before all that compile. Run ``k`` adds ``k`` to the seeds of the config; a validation split
stays that of the first. Prints one JSON line a seed, then one of the means (``side`` is ``mean``).
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import end_to_end, harness
from jaxres import command_line
from jaxres import config as config_lib
from jaxres.errors import one_line


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--config', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--metric', default='test/top1')
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  args, overrides = parser.parse_known_args()
  unknown = [word for word in overrides if not word.startswith('--config.')]
  if unknown:
    parser.error(f'unknown arguments: {" ".join(unknown)}')
  context = {'config': args.config, 'overrides': overrides, 'metric': args.metric}
  context |= {'benchmark': 'warm'} | harness.machine()
  rows = []
  with one_line():
    for row in trainings(command_line.load(args.config, overrides), args.metric, args.seeds):
      rows.append({'side': f'seed {len(rows)}'} | row)
      harness.report([rows[-1] | context], args.out)
  harness.report([end_to_end.mean(rows) | context], args.out)


def trainings(config: Mapping[str, Any], metric: str, seeds: int) -> Iterator[dict[str, Any]]:
  """Yield what each training took and reached; its steps and its evaluation are those of ``train.py``."""
  from jaxres.runtime.compiler import enable_compilation_cache
  from jaxres.runtime.memory import keep_freed_memory

  keep_freed_memory()
  enable_compilation_cache()
  setup = prepare(config_lib.to_dict(config_lib.complete(config)), metric)
  whitening_s, total = whitening_seconds(setup), setup.plan.total_steps
  images = total * setup.dataset.train.batch_size
  _, scores = train_once(setup, 0, min(total, setup.scan_steps + 1))  # compiles
  if metric not in scores:
    raise SystemExit(f'--metric: {metric!r} was never measured; there are {", ".join(sorted(scores))}')
  for k in range(seeds):
    seconds, scores = train_once(setup, k, total)
    speed = {'seconds': round(seconds + whitening_s, 4), 'images_per_s': round(images / seconds, 2)}
    yield speed | {'steps': total, 'accuracy': scores[metric]}


def prepare(config: Mapping[str, Mapping[str, Any]], metric: str) -> Any:
  """Return a ``setup.Setup`` with its data on the device, and with the views of ``metric`` alone."""
  from jaxres.runtime.compiler import set_deterministic
  from jaxres.train.setup import make_setup

  set_deterministic(config['train']['deterministic'])
  once = {'eval_every_epochs': config['train']['epochs']}
  setup = make_setup({**config, 'train': config['train'] | once})
  views = max((name for name in setup.eval_steps if metric.removeprefix('ema/').startswith(name)), key=len)
  setup.dataset.place(setup.mesh)
  return setup._replace(eval_steps={views: setup.eval_steps[views]})


def train_once(setup: Any, k: int, steps: int) -> tuple[float, dict[str, float]]:
  """Return the seconds and the scores of ``steps`` steps of the training with seeds moved by ``k``."""
  import jax

  from jaxres.runtime import signals
  from jaxres.train.loop import evaluate_segment
  from jaxres.train.plan import group_feeds
  from jaxres.train.step import Hyperparameters

  setup.dataset.train.seed = setup.config['data']['seed'] + k
  setup = setup._replace(key=jax.random.key(setup.options.seed + k))
  start = time.perf_counter()
  train_state, bad = setup.create(setup.key), []
  for _, group in group_feeds(setup.feeds(0, steps), 0, steps, setup.scan_steps, setup.options.log_every_steps):
    train_state, sums = setup.take_steps(train_state, group, Hyperparameters())
    bad.append(sums['bad'])
  evaluation = evaluate_segment(setup, train_state, signals.PreemptionGuard())
  assert evaluation is not None  # that watch notes nothing
  scores = evaluation[1]
  seconds = time.perf_counter() - start
  if sum(jax.device_get(bad)):
    raise SystemExit('a step was not finite; lower optim.lr or lengthen optim.warmup_epochs')
  return seconds, scores


def whitening_seconds(setup: Any) -> float:
  """Return what a stem that whitens takes to compute its kernel; the programs have it already."""
  from jaxres.models import speedrun
  from jaxres.train.setup import first_transform

  if setup.model.stem_type != 'whitening':
    return 0.0
  images = first_transform(setup.model, setup.dataset).keywords['images']  # type: ignore[attr-defined]
  start = time.perf_counter()
  speedrun.whitening_kernel(images)
  return time.perf_counter() - start


if __name__ == '__main__':
  main()
