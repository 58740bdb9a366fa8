"""How long a training takes, and how long it takes to an accuracy.

python benchmarks/end_to_end.py --config configs/resnet18_cifar.py --target 0.94 --seeds 5

Runs what main.py runs, each seed in a fresh process, with a workdir and an empty cache of programs. ``first_step_s``
goes from the start of the process to the end of the first step, or of the first steps that are one call: imports,
data, compiling. ``rest_s`` is everything behind it, evaluations and checkpoints too, and the compiling of the
evaluation; ``compile_s`` is what XLA took of both. ``reached_s`` is from the start of the process to the end of the
first evaluation at the target. Prints one JSON line a seed, then one of the means (``side`` is ``mean``), in which the
seconds to the target are there where every seed reached it.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness
from jaxres import command_line
from jaxres import config as config_lib
from jaxres.errors import one_line

MEANS = (
  *('first_step_s', 'rest_s', 'compile_s', 'total_s', 'seconds', 'images_per_s', 'cpu_ms_per_image', 'accuracy'),
  'reached_s',
)


class Mark(NamedTuple):
  """A moment of a run."""

  seconds: float  # since it started
  cpu: float  # seconds, of all threads
  step: int
  scores: Mapping[str, float]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--config', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--target', type=float, help='the score that is timed')
  parser.add_argument('--metric', default='test/top1')
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  parser.add_argument('--side', help=argparse.SUPPRESS)
  args, overrides = parser.parse_known_args()
  unknown = [word for word in overrides if not word.startswith('--config.')]
  if unknown:
    parser.error(f'unknown arguments: {" ".join(unknown)}')
  with one_line():
    config = command_line.load(args.config, overrides)
  if args.side:
    with tempfile.TemporaryDirectory() as workdir, one_line():
      harness.answer(**run(config, int(args.side), workdir, args.metric, args.target))
    return
  context = {'config': args.config, 'overrides': overrides, 'metric': args.metric, 'target': args.target}
  context |= {'benchmark': 'end_to_end'} | harness.machine()
  rows = []
  for seed in range(args.seeds):
    with tempfile.TemporaryDirectory() as programs:
      environment = {'JAX_COMPILATION_CACHE_DIR': programs}  # not the user's, which earlier runs have filled
      answer = harness.ask('jaxres', harness.this_command(str(seed)), environment)
    rows.append({'side': f'seed {seed}'} | answer)
    harness.report([rows[-1] | context], args.out)  # at once: a run can take hours
  harness.report([mean(rows) | context], args.out)


def run(
  config: Mapping[str, Any], seed: int, workdir: str | os.PathLike[str], metric: str, target: float | None
) -> dict[str, Any]:
  """Train ``config`` with its seeds moved by ``seed``, as ``--seeds`` of main.py does, and return what it took.

  The log of the run is what is timed: its first report is that of the first step, and it writes a row, whose scores
  have come from the device, at the end of every evaluation.
  """
  before, clock, cpu = harness.seconds_since_start(), time.perf_counter(), time.process_time()
  import jax

  from jaxres.log import run_log
  from jaxres.train import loop

  marks: list[Mark] = []
  compiled: list[float] = []

  def mark(step: int, scores: Mapping[str, float]) -> None:
    marks.append(Mark(before + time.perf_counter() - clock, time.process_time() - cpu, step, scores))

  class TimedLog(run_log.RunLog):
    def show(self, step: int, means: Mapping[str, float]) -> None:
      mark(step, {})
      super().show(step, means)

    def write(self, step: int, values: Mapping[str, float]) -> None:
      mark(step, values)
      super().write(step, values)

  def listen(event: str, seconds: float, **_: Any) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(seconds)

  options = config_lib.to_dict(config_lib.complete(config))
  options['train']['seed'] += seed
  options['data']['seed'] += seed
  jax.monitoring.register_event_duration_secs_listener(listen)
  with mock.patch.object(loop, 'RunLog', TimedLog):
    loop.train_and_evaluate(options, workdir)
  return summarize(marks, options['data']['batch_size'], metric, target) | {'compile_s': round(sum(compiled), 3)}


def summarize(marks: list[Mark], batch_size: int, metric: str, target: float | None) -> dict[str, Any]:
  """Return the row of a run from its moments, the first of which is the end of its first step."""
  scored = [mark for mark in marks if metric in mark.scores]
  if not scored:
    names = sorted({name for mark in marks for name in mark.scores})
    raise SystemExit(f'--metric: {metric!r} was never measured; there are {", ".join(names)}')
  first, last = marks[0], scored[-1]
  images, rest = (last.step - first.step) * batch_size, last.seconds - first.seconds
  summary: dict[str, Any] = {
    'first_step_s': round(first.seconds, 3),
    'rest_s': round(rest, 3),
    'total_s': round(last.seconds, 3),
    'images_per_s': round(images / rest, 2),
    'cpu_ms_per_image': round(1e3 * (last.cpu - first.cpu) / images, 4),
    'steps': last.step,
    'evaluations': len(scored),
    'accuracy': last.scores[metric],
  }
  if target is None:
    return summary
  hit = next((mark for mark in scored if mark.scores[metric] >= target), None)
  reached = {'reached_s': hit and round(hit.seconds, 3), 'reached_step': hit and hit.step}
  return summary | {'reached': hit is not None} | reached


def mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Return the row of the means over seeds, with spreads; of ``reached``, how many seeds did."""
  summary: dict[str, Any] = {'side': 'mean', 'seeds': len(rows)}
  if 'reached' in rows[0]:
    summary['reached'] = sum(row['reached'] for row in rows)
  for name in MEANS:
    values = [row.get(name) for row in rows]
    if None not in values:
      summary[name] = round(statistics.fmean(values), 4)
      summary[f'{name}_spread'] = [min(values), max(values)]
  if len(rows) > 1:
    summary['accuracy_std'] = round(statistics.stdev(row['accuracy'] for row in rows), 5)
  return summary


if __name__ == '__main__':
  main()
