"""How everything here is measured: sides that take turns, each in a separate process, and one JSON line a result.

A *side* is one way to do the same work: jaxres, PyTorch, a plain flax loop. Each is a process that builds and warms up
its work and then waits; the parent asks them to work in turn, round after round, so that what else happens on the
machine meets them all alike. A speed is the median of the rounds; a ratio is the median of the ratios within a round.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
HIDDEN = (  # what a printed table leaves to the JSON lines
  *('benchmark', 'model', 'stem', 'classes', 'image_size', 'dtype', 'data', 'scan_steps', 'torch_compile', 'gpus'),
  *('weak', 'config', 'overrides', 'images', 'device', 'cores', 'python', 'versions', 'commit', 'date'),
)
STARTED = 'JAXRES_BENCHMARK_BEGAN'  # the environment variable that tells a side when it was started
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'torch', 'numpy', 'pillow', 'simplejpeg')


class Work(NamedTuple):
  """What a side does: a function of a number of steps that returns when they are done, and what it is made of."""

  run: Callable[[int], None]
  images: int  # a step
  facts: dict[str, Any]  # such as compile_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add how it is measured, and the name that tells a process which side it is."""
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  parser.add_argument('--side', help=argparse.SUPPRESS)


def this_command(side: str) -> list[str]:
  """Return the command of this process, told to be ``side``."""
  return [sys.executable, *sys.argv, '--side', side]


def serve(build: Callable[[], Work]) -> None:
  """Be a side: build the work, say so, and do as many steps as each line on standard input asks for."""
  start = time.perf_counter()
  work = build()
  work.run(1)
  answer(ready_s=time.perf_counter() - start, images=work.images, **software(), **work.facts)
  for line in sys.stdin:
    steps, cpu, wall = int(line), time.process_time(), time.perf_counter()
    work.run(steps)
    answer(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def answer(**fields: Any) -> None:
  """Send one line of JSON to the parent, on the standard output that the side was started with."""
  print(json.dumps(fields), file=sys.__stdout__, flush=True)


def seconds_since_start() -> float:
  """Return the seconds since the parent started this process; 0 where no parent did."""
  return time.time() - float(os.environ.get(STARTED, time.time()))


class Side:
  """The parent's end of a side."""

  def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None):
    self.name = name
    defaults = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # sides share a GPU's memory
    variables = {'PYTHONPATH': python_path(), STARTED: str(time.time()), **(environment or {})}
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=defaults | os.environ | variables
    )
    self.facts = self._read()

  def work(self, steps: int) -> dict[str, float]:
    """Return the seconds that ``steps`` steps took: ``wall``, and ``cpu`` over all threads."""
    assert self.process.stdin
    with contextlib.suppress(BrokenPipeError):  # it ended since it last answered
      self.process.stdin.write(f'{steps}\n')
      self.process.stdin.flush()
    return self._read()

  def close(self) -> None:
    """End the process."""
    self.process.kill()
    self.process.communicate()

  def _read(self) -> dict[str, Any]:
    assert self.process.stdout
    for line in self.process.stdout:
      with contextlib.suppress(json.JSONDecodeError):  # what a library prints
        fields = json.loads(line)
        if isinstance(fields, dict):
          return fields
    self.process.communicate()
    raise SystemExit(f'benchmark: the side {self.name!r} ended with status {self.process.returncode}')


def python_path() -> str:
  """Return the PYTHONPATH of a process of ours: this repository, then what was there."""
  return os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))


def ask(name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
  """Return what a process answers that answers once, and end it."""
  side = Side(name, command, environment)
  side.close()
  return side.facts


@contextlib.contextmanager
def open_sides(
  commands: Mapping[str, Sequence[str]], environments: Mapping[str, Mapping[str, str]] | None = None
) -> Iterator[list[Side]]:
  """Start a side for each command, one after the other, in its environment, and end them all."""
  sides: list[Side] = []
  try:
    for name, command in commands.items():
      sides.append(Side(name, command, (environments or {}).get(name)))
    yield sides
  finally:
    for side in sides:
      side.close()


def interleave(sides: Sequence[Side], rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
  """Return the rounds of each side: ``images_per_s`` and ``cpu_ms_per_image``.

  A first round, not counted, finds how many steps of a side take about ``seconds``.
  """
  steps = {}
  for side in sides:
    side.work(1)
    steps[side.name] = max(1, round(seconds / side.work(2)['wall'] * 2))
  rows: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
  for number in range(rounds):
    for side in sides if number % 2 == 0 else reversed(sides):
      took = side.work(steps[side.name])
      images = steps[side.name] * side.facts['images']
      row = {'images_per_s': images / took['wall'], 'cpu_ms_per_image': 1e3 * took['cpu'] / images}
      rows[side.name].append(row)
  return rows


def summarize(by_side: Mapping[str, list[dict[str, float]]], first: str) -> list[dict[str, Any]]:
  """Return a row for each side: medians, spreads, how many times as fast ``first`` is; ratios are by round."""
  rows = []
  for name, rounds in by_side.items():
    speeds = [row['images_per_s'] for row in rounds]
    pairs = list(zip(by_side[first], rounds, strict=True))
    ratios = [ours['images_per_s'] / theirs['images_per_s'] for ours, theirs in pairs]
    cpu_ratios = [theirs['cpu_ms_per_image'] / ours['cpu_ms_per_image'] for ours, theirs in pairs]
    rows.append(
      {
        'side': name,
        'images_per_s': round(statistics.median(speeds), 2),
        'spread': [round(min(speeds), 2), round(max(speeds), 2)],
        'cpu_ms_per_image': round(statistics.median(row['cpu_ms_per_image'] for row in rounds), 4),
        f'{first}_is_times_as_fast': round(statistics.median(ratios), 3),
        'ratio_spread': [round(min(ratios), 3), round(max(ratios), 3)],
        f'cpu_time_is_times_that_of_{first}': round(statistics.median(cpu_ratios), 3),
        'rounds': len(rounds),
      }
    )
  return rows


def round_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Return ``facts`` with floats of four significant digits."""
  return {name: float(f'{value:.4g}') if isinstance(value, float) else value for name, value in facts.items()}


def machine() -> dict[str, Any]:
  """Return what a result was measured on and with."""
  return {
    'device': device_name(),
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'load_before': round(os.getloadavg()[0], 2),
    **software(),
    'commit': commit(),
    'date': time.strftime('%Y-%m-%d'),
  }


def software() -> dict[str, Any]:
  """Return the versions of Python and of the packages that this process measures with."""
  versions = {name: version for name in PACKAGES if (version := version_of(name))}
  return {'python': platform.python_version(), 'versions': versions}


def commit() -> str:
  """Return this commit: ``$JAXRES_COMMIT``, for copies of a working tree, else git's; empty where neither knows it."""
  if known := os.environ.get('JAXRES_COMMIT'):
    return known
  with contextlib.suppress(OSError):
    asked = ['git', 'rev-parse', '--short', 'HEAD']
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
  return ''


def device_name() -> str:
  """Return the GPU's name where nvidia-smi knows one, else the processor's."""
  query = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
  with contextlib.suppress(OSError):
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout.strip():
      return done.stdout.splitlines()[0].strip()
  return processor_name()


def processor_name() -> str:
  """Return the processor's name."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
  """Return the installed version of ``package``, None where there is none."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def report(rows: Sequence[Mapping[str, Any]], out: str | None) -> None:
  """Print one JSON line a row, add them to the file ``out``, then print them as a table."""
  lines = [json.dumps(row) for row in rows]
  print('\n'.join(lines), flush=True)
  if out:
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
      file.write('\n'.join(lines) + '\n')
  print_table(rows)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
  """Print the measured columns of ``rows``."""
  columns = [key for key in rows[0] if key not in HIDDEN]
  cells = [[show(row.get(column)) for column in columns] for row in rows]
  widths = [max(map(len, [column, *[line[i] for line in cells]])) for i, column in enumerate(columns)]
  for line in [columns, *cells]:
    print('  '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def show(value: Any) -> str:
  """Return a cell of the table."""
  if isinstance(value, list):
    return '-'.join(map(show, value))
  if isinstance(value, dict):
    return ', '.join(f'{count} {name}' for name, count in value.items()) or 'none'
  return f'{value:g}' if isinstance(value, float) else str(value)
