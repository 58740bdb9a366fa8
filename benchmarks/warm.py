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
  from jaxres.runtime.compiler import keep_programs
  from jaxres.runtime.memory import keep_freed_memory

  keep_freed_memory()
  keep_programs()
  options = config_lib.to_dict(config_lib.complete(config))
  training, programs = prepare(options, metric)
  whitening_s, total = whitening_seconds(training.parts), training.plan.total_steps
  images = total * training.parts.dataset.train.batch_size
  _, scores = train_once(training, programs, options, 0, min(total, training.group_size + 1))  # compiles
  if metric not in scores:
    raise SystemExit(f'--metric: {metric!r} was never measured; there are {", ".join(sorted(scores))}')
  for k in range(seeds):
    seconds, scores = train_once(training, programs, options, k, total)
    speed = {'seconds': round(seconds + whitening_s, 4), 'images_per_s': round(images / seconds, 2)}
    yield speed | {'steps': total, 'accuracy': scores[metric]}


def prepare(options: Mapping[str, Mapping[str, Any]], metric: str) -> tuple[Any, Any]:
  """Return a ``train.Training`` on data that is on the device, and its programs, with the views of ``metric`` alone."""
  import jax

  from jaxres.runtime import sharding
  from jaxres.runtime.compiler import be_deterministic
  from jaxres.train import loop
  from jaxres.train.plan import make_plan
  from jaxres.train.setup import FIELDS, make_parts, make_programs

  fields = options['train']
  be_deterministic(fields['deterministic'])
  parts = make_parts(options)
  data = parts.dataset.train
  length = make_plan(data, fields['epochs'], fields['epochs'], False, False)
  programs = make_programs(parts, length, **{name: fields[name] for name in FIELDS})
  views = max((name for name in programs.eval_steps if metric.removeprefix('ema/').startswith(name)), key=len)
  programs = programs._replace(eval_steps={views: programs.eval_steps[views]})
  parts.dataset.place(parts.mesh)
  training = loop.Training(
    parts=parts,
    plan=length,
    programs=lambda rollbacks: programs,
    key=jax.random.key(fields['seed']),
    feeds=data.train_feeds,
    group_size=fields['scan_steps'] or loop.best_scan_steps(data),
    log_every=fields['log_every_steps'],
    eval_batch_size=sharding.round_up(fields['eval_batch_size'], parts.mesh),
    eval_limit=None,
    recalibrate_bn=fields['recalibrate_bn'],
    patience=0,
    spike_factor=0.0,
    overfit_one_batch=False,
    accumulate=fields['accumulate'],
  )
  return training, programs


def train_once(
  training: Any, programs: Any, options: Mapping[str, Mapping[str, Any]], k: int, steps: int
) -> tuple[float, dict[str, float]]:
  """Return the seconds and the scores of ``steps`` steps of the training with seeds moved by ``k``."""
  import jax

  from jaxres.runtime import signals

  training.parts.dataset.train.seed = options['data']['seed'] + k
  training = training._replace(key=jax.random.key(options['train']['seed'] + k))
  start = time.perf_counter()
  train_state, bad = programs.create(training.key), []
  for _, reached, sums in training.steps(programs, train_state, 0, steps):
    train_state = reached
    bad.append(sums['bad'])
  _, scores = training.evaluated(programs, train_state, steps, signals.Watch())
  seconds = time.perf_counter() - start
  if sum(jax.device_get(bad)):
    raise SystemExit('a step was not finite; lower optim.lr or lengthen optim.warmup_epochs')
  return seconds, scores


def whitening_seconds(parts: Any) -> float:
  """Return what a stem that whitens takes to compute its kernel; the programs have it already."""
  from jaxres.models import speedrun
  from jaxres.train.setup import first_transform

  if parts.model.stem_type != 'whitening':
    return 0.0
  images = first_transform(parts.model, parts.dataset).keywords['images']  # type: ignore[attr-defined]
  start = time.perf_counter()
  speedrun.kernel(images)
  return time.perf_counter() - start


if __name__ == '__main__':
  main()
