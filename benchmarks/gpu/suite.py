"""All that is measured on one GPU, in calls of a few minutes: the same command again goes on where the last one ended.

JAXRES_COMMIT=abc1234 python3 benchmarks/gpu/suite.py --data cifar10.npz --out DIR --airbench airbench

A *unit* is one command of ``benchmarks/``, the most valuable first. Its JSON lines go to ``DIR/results.jsonl`` when it
ends, with its name, what it printed to ``DIR/suite.log``. A unit whose lines are there is not done again, one that
would not end before ``--budget_s`` is not started, one that fails leaves a line with its error (``--retry`` tries it
again) and the next starts. ``--list`` shows what there is; ``--tiny`` does it all on a CPU, on little: the rehearsal.

What it needs. Python 3.11 or later with jax for the GPU, flax, optax, orbax-checkpoint, tensorstore, numpy, scipy,
pillow, rich and absl-py; torch for PyTorch's sides, torchvision for airbench alone. ml-collections, which needs PyYAML,
is the one package of them that a usual GPU image lacks: carry its wheel (``pip download --no-deps``, 0.1 MB) and put it
on PYTHONPATH. Without clu, tensorboardX and matplotlib a training leaves out parameters.txt, event files and the
picture of its curves; TFDS, array_record, simplejpeg, OpenCV and scikit-learn are not asked for. Take along a checkout
of airbench (github.com/KellerJordan/cifar10-airbench, 1 MB) and CIFAR-10 as an ``.npz`` of train_x, train_y, test_x and
test_y; what needs one that is not there is left for a later call.

Where a machine is lent by the call, keeps nothing for long and limits the bytes of a call: the first call, which brings
the first half of the data, does what needs none of it (``--stages speed knobs``); the second brings the other half.
Before each call copy the ``results.jsonl`` of the last one into ``DIR``.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks import harness
from benchmarks.gpu.units import Unit, make_units, shrink, write_noise

STAGES = ('speed', 'accuracy', 'profile', 'determinism', 'precision', 'knobs')
PROGRAMS = pathlib.Path(tempfile.gettempdir()) / 'jaxres_gpu_suite_programs'  # what is compiled, for later units
AGAIN = 1.5  # times the seconds that a unit was stopped after: with that many left it is done again
TAIL = 600  # characters of what a unit that failed printed last
SHOWN = ('images_per_s', 'jaxres_is_times_as_fast', 'gain', 'predicted', 'share_of_limit', 'compile_s', 'seconds')
SHOWN += ('accuracy', 'accuracy_std', 'reached_s', 'same_digest')
Row = dict[str, Any]


Runner = Callable[[Unit, float], list[Row]]  # of the seconds that are left; raises UnitError


class UnitError(Exception):
  """A unit did not end well; ``facts`` go to its line."""

  def __init__(self, message: str, **facts: Any):
    super().__init__(message)
    self.facts = facts


def main(argv: Sequence[str] | None = None) -> int:
  """Do what is left to do and fits; return 1 where a unit failed in this call, else 0."""
  start = time.monotonic()
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', help='CIFAR-10 as an .npz file as of data.name=arrays')
  parser.add_argument('--out', required=True, help='a folder: results.jsonl, suite.log')
  parser.add_argument('--airbench', help='a checkout of github.com/KellerJordan/cifar10-airbench')
  parser.add_argument('--stages', nargs='+', choices=STAGES, default=STAGES)
  parser.add_argument('--units', nargs='+', metavar='UNIT', help='these alone, by name')
  parser.add_argument('--budget_s', type=float, default=540.0, help='seconds of this call')
  parser.add_argument('--tiny', action='store_true', help='little work, on a CPU')
  parser.add_argument('--retry', action='store_true', help='also the units that failed')
  parser.add_argument('--list', action='store_true', help='show the units, what they take, and what is done')
  args = parser.parse_args(argv)
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as scratch:
    if args.tiny and not args.data:
      args.data = f'{scratch}/tiny.npz'
      write_noise(args.data, size=16, classes=10, count=96)
    units = make_units(os.path.abspath(args.data or ''), os.path.abspath(args.airbench or ''), scratch)
    known = {unit.name for unit in units}
    if unknown := set(args.units or ()) - known:
      parser.error(f'--units: unknown {", ".join(sorted(unknown))}; there are {", ".join(sorted(known))}')
    units = [unit for unit in units if unit.stage in args.stages and unit.name in (args.units or known)]
    units = [shrink(unit) for unit in units] if args.tiny else units
    if args.list:
      return show_units(units, read(out / 'results.jsonl'))
    given = {'data': bool(args.data and os.path.isfile(args.data)), 'airbench': bool(args.airbench)}
    missing = {name for name, there in given.items() if not there}
    runner = lambda unit, seconds: run_unit(unit, seconds, out / 'suite.log')
    return run_all(units, out / 'results.jsonl', start + args.budget_s, runner, missing, retry=args.retry)


def run_all(
  units: Sequence[Unit],
  results: pathlib.Path,
  deadline: float,
  runner: Runner,
  missing: Collection[str] = (),
  *,
  retry: bool = False,
) -> int:
  """Do the units that have no line in ``results`` and fit; return 1 where one failed, else 0.

  Args:
    units: in the order in which they are tried; one that does not fit leaves the time to those behind it.
    results: the file that lines are added to.
    deadline: of ``time.monotonic``; what runs then is stopped.
    runner: does a unit.
    missing: of what units need, what is not there.
    retry: do those that failed again.
  """
  lines, call, failed, left_over = read(results), time.strftime('%Y-%m-%dT%H:%M:%S'), [], []
  for unit in units:
    unit_rows, left = [row for row in lines if row['unit'] == unit.name], deadline - time.monotonic()
    if unit_rows and not should_rerun(unit_rows, left, retry):
      continue
    lacks = [name for name in unit.needs if name in missing]
    if lacks or unit.estimate_s > left:
      left_over.append(unit.name)
      print(
        f'{unit.name}: not started: {f"no --{lacks[0]}" if lacks else f"{unit.estimate_s:.0f} s, {left:.0f} are left"}'
      )
      continue
    start = time.monotonic()
    try:
      rows = runner(unit, left)
    except UnitError as error:
      failed.append(unit.name)
      rows = [{'error': str(error)} | error.facts]
    about = {'unit': unit.name, 'call': call, 'unit_s': round(time.monotonic() - start, 1)}
    append(results, [about | row for row in rows])
    for row in rows:
      print(f'{unit.name} ({about["unit_s"]} s): {one_line(row)}', flush=True)
  print(f'failed: {", ".join(failed) or "none"}; left: {", ".join(left_over) or "none"}')
  return int(bool(failed))


def should_rerun(unit_rows: Sequence[Row], left: float, retry: bool) -> bool:
  """Return whether a unit with lines is done again: if it failed and ``retry`` is set, or it was short of time."""
  error = next((row for row in reversed(unit_rows) if 'error' in row), None)
  if error is None or error is not unit_rows[-1]:
    return False
  return retry or left >= AGAIN * error.get('stopped_after_s', float('inf'))


def run_unit(unit: Unit, seconds: float, log: pathlib.Path) -> list[Row]:
  """Return the lines of JSON that the command of ``unit`` prints; where there are none, one row of all its lines.

  Raises:
    UnitError: the command fails, or does not end within ``seconds``: it and all that it started are then killed.
  """
  if unit.prepare:
    unit.prepare()
  first, *rest = unit.words
  command = [sys.executable, *([first] if first == '-m' else [str(harness.ROOT / 'benchmarks' / first)]), *rest]
  defaults = {'JAX_COMPILATION_CACHE_DIR': str(PROGRAMS), 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'COLUMNS': '160'}
  environment = defaults | os.environ | {'PYTHONPATH': harness.python_path()} | dict(unit.environment)
  process = subprocess.Popen(
    command,
    cwd=harness.ROOT,
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    process_group=0,  # of one session with us, so that what ends this ends it too
  )
  stopped = False
  try:
    output, errors = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    stopped = True
    end(process)
    output, errors = process.communicate()
  except BaseException:
    end(process)
    raise
  with log.open('a') as file:
    file.write(f'== {unit.name}: {" ".join(unit.words)}\n{output}{errors}\n')
  rows = [json.loads(line) for line in output.splitlines() if line.startswith('{')]
  if stopped:
    raise UnitError(f'stopped after {seconds:.0f} s', stopped_after_s=round(seconds), partial=rows)
  if process.returncode:
    raise UnitError(f'status {process.returncode}: {(output + errors).strip()[-TAIL:]}', partial=rows)
  if not rows:
    rows = [{'benchmark': unit.stage, 'side': 'jaxres', 'lines': output.splitlines()} | harness.machine()]
  return [row | {'environment': dict(unit.environment)} if unit.environment else row for row in rows]


def end(process: subprocess.Popen[str]) -> None:
  """Kill a process and all that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)


def read(results: pathlib.Path) -> list[Row]:
  """Return the complete lines of ``results``; a call that was killed may have left the last one unfinished."""
  rows = []
  for line in results.read_text().splitlines() if results.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      rows.append(json.loads(line))
  return rows


def append(results: pathlib.Path, rows: Sequence[Row]) -> None:
  """Add a unit's lines to ``results``, all or none of them that ``read`` sees, on new lines."""
  broken = results.exists() and not results.read_text().endswith('\n')
  with results.open('a') as file:
    file.write('\n' * broken + ''.join(f'{json.dumps(row)}\n' for row in rows))


def one_line(row: Row) -> str:
  """Return what a person looks at first."""
  if 'error' in row:
    return f'FAILED: {row["error"]}'
  if 'lines' in row:
    return '\n'.join(['', *row['lines']])
  return f'{row["side"]}: ' + ', '.join(f'{name} {harness.show(row[name])}' for name in SHOWN if name in row)


def show_units(units: Sequence[Unit], lines: Sequence[Row]) -> int:
  """Print the units, and what there is of each."""
  states = {row['unit']: 'failed' if 'error' in row else 'done' for row in lines}
  for unit in units:
    print(f'{unit.name:30} {unit.estimate_s:5.0f} s  {states.get(unit.name, "to do"):7} {" ".join(unit.words)}')
  left = sum(unit.estimate_s for unit in units if unit.name not in states)
  print(f'{len(units)} units, {left:.0f} s to do')
  return 0


if __name__ == '__main__':
  sys.exit(main())
