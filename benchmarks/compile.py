"""How long a training step takes to compile: cold, and from JAX's persistent cache.

python benchmarks/compile.py --model resnet18 --stem cifar --batch_size 64

Every figure is that of a fresh process; a round is one with an empty cache and one with what it left. ``start_s`` is
from the start of the process to its data and its state, ``trace_s`` traces and lowers the step, ``compile_s`` is what
XLA or the cache takes, ``total_s`` goes from the start to the end of the first step. With ``--peer torch`` the same of
torch.compile, whose tracing and compiling are the first step. Prints one JSON line a side and a table.
"""

import argparse
import collections
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness, sides


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  sides.add_arguments(parser)
  harness.add_arguments(parser)
  parser.add_argument('--peer', nargs='*', default=[], choices=('torch',))
  args = sides.parse(parser)
  if args.side:
    harness.answer(**FIRST_STEPS[args.side](args))
  else:
    harness.report(measure(args), args.out)


def jaxres_first_step(args: argparse.Namespace) -> dict[str, Any]:
  """Return what the first step takes in this process, and whether the cache had it."""
  import jax

  events: list[str] = []
  jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
  made = sides.jaxres_step(args)
  jax.block_until_ready(made.state)
  facts = {'start_s': harness.seconds_since_start()}
  clock, cpu = time.perf_counter(), time.process_time()
  lowered = made.lower()
  facts |= {'trace_s': time.perf_counter() - clock, 'trace_cpu_s': time.process_time() - cpu}
  events.clear()
  clock, cpu = time.perf_counter(), time.process_time()
  lowered.compile()
  facts |= {'compile_s': time.perf_counter() - clock, 'compile_cpu_s': time.process_time() - cpu}
  facts['from_cache'] = '/jax/compilation_cache/cache_hits' in events
  sides.training(made, args.batch_size)
  return facts | {'total_s': harness.seconds_since_start()}


def torch_first_step(args: argparse.Namespace) -> dict[str, Any]:
  """Return what the first step of PyTorch takes in this process, compiled."""
  args.torch_compile = True
  cpu = time.process_time()
  work = sides.torch_train(args)
  total = harness.seconds_since_start()
  compile_s = work.facts['compile_s']
  cpu_s = time.process_time() - cpu
  return {'start_s': total - compile_s, 'compile_s': compile_s, 'compile_cpu_s': cpu_s, 'total_s': total}


FIRST_STEPS = {'jaxres': jaxres_first_step, 'torch': torch_first_step}


def caches(folder: str) -> dict[str, str]:
  """Return the environment that keeps everything compiled in ``folder``."""
  return {
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_COMPILATION_CACHE_DIR': f'{folder}/jax',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'TORCHINDUCTOR_CACHE_DIR': f'{folder}/inductor',
    'TRITON_CACHE_DIR': f'{folder}/triton',
  }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
  """Return a row for each side, cold and cached."""
  context = {'benchmark': 'compile'} | sides.describe(args) | harness.machine()
  rounds = collections.defaultdict(list)
  for _ in range(args.rounds):
    for side in ('jaxres', *args.peer):
      with tempfile.TemporaryDirectory() as folder:
        for state in ('cold', 'cached'):
          rounds[f'{side}, {state}'].append(harness.ask(side, harness.this_command(side), caches(folder)))
  return [summarize(side, rounds) | context for side, rounds in rounds.items()]


def summarize(side: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
  """Return the row of a side: the median of every figure, the spread of the seconds that compiling took."""
  row: dict[str, Any] = {'side': side}
  for name, value in rounds[0].items():
    values = [facts[name] for facts in rounds]
    row[name] = all(values) if isinstance(value, bool) else round(statistics.median(values), 3)
    if name in ('compile_s', 'total_s'):
      row[f'{name}_spread'] = [round(min(values), 3), round(max(values), 3)]
  return row | {'rounds': len(rounds)}


if __name__ == '__main__':
  main()
