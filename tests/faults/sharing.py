"""Trials of runs that share what is theirs: a workdir, a name, a disk, an output, a reader."""

import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np

from jaxres import checkpoint
from jaxres.checkpoint import reader
from jaxres.errors import InputError
from jaxres.runtime.lock import LOCK
from jaxres.state import TrainState
from tests.faults import breaking
from tests.faults.runs import (
  LENGTH,
  TINY,
  Row,
  damage,
  digest,
  environment,
  finish,
  newest,
  run_uninterrupted,
  start,
  tool,
)
from tests.faults.table import ROOT

LETTERS = "[]{}()%#?|*!'&;:,~$@ ab1üß日" + '"'


def odd_path(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Save, save again and read under a path of random letters, here and from another directory."""
  root = scratch / 'odd'
  shutil.rmtree(root, ignore_errors=True)
  names = [''.join(rng.choice(LETTERS) for _ in range(rng.randrange(1, 9))) for _ in range(3)]
  directory = root.joinpath(*names) / 'checkpoints'
  state = lambda step: TrainState(jnp.int32(step), {'a': jnp.arange(9.0) * step}, {}, ())
  try:
    for step in (1, 2):
      with checkpoint.open_manager(directory) as manager:
        checkpoint.save(manager, state(step), {}, {})
    moved = root / rng.choice(names) / 'moved [1]%20'
    moved.parent.mkdir(exist_ok=True)
    shutil.copytree(directory, moved)
    right = all(
      np.array_equal(reader.read(at / '2').state['params/a'], np.arange(9.0) * 2) for at in (directory, moved)
    )
    return {'path': '/'.join(names), 'ok': right}
  except InputError as error:  # told before anything was written
    return {
      'path': '/'.join(names),
      'said': str(error)[:200],
      'ok': not root.exists() and 'under this path' in str(error),
    }


def two_trainings(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Start a second training in a workdir, and see that it is told off and that the first ends as if it were alone."""
  place, expected = scratch / 'two', run_uninterrupted(scratch)
  shutil.rmtree(place, ignore_errors=True)
  first = start(scratch, place, LENGTH)
  until = time.monotonic() + 60
  while not (place / LOCK).exists() and first.poll() is None and time.monotonic() < until:
    time.sleep(0.01)
  time.sleep(rng.random() * rng.choice([0.1, 3.0]))
  second = start(scratch, place, LENGTH, *(['--config.train.epochs=60'] if number % 2 else []))
  status, output = finish(second)
  ended, told = finish(first)
  alike = ended == 0 and digest(place) == expected
  refused = status == 2 and f'process {first.pid} on host' in output and '\n' not in output
  rows = [json.loads(line)['step'] for line in (place / 'metrics.jsonl').read_text().splitlines()]
  ok = (refused or status == 0) and alike and not told and rows == sorted(set(rows))
  return {'status': status, 'said': output[-200:], 'refused': refused, 'ends_alike': alike, 'ok': ok}


def exchange(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Put the checkpoints of another run into a workdir, and see that training and tools refuse them."""
  run_uninterrupted(scratch)
  field, value = [('train.seed', 1), ('optim.lr', 0.2), ('train.ema', 0.5), ('optim.warmup_epochs', 2)][number % 4]
  place = scratch / 'exchanged'
  shutil.rmtree(place, ignore_errors=True)
  shutil.copytree(scratch / 'run_uninterrupted', place)
  config = json.loads((place / 'config.json').read_text())
  section, name = field.split('.')
  config[section][name] = value
  kind = ('of the other', 'missing', 'null')[number % 3]
  (place / 'config.json').write_text(json.dumps(config) if kind == 'of the other' else 'null')
  if kind == 'missing':
    (place / 'config.json').unlink()
  before = {path: path.read_bytes() for path in sorted(place.rglob('*')) if path.is_file()}
  status, output = finish(start(scratch, place, LENGTH, f'--config.{field}={value}'))
  actual = tool(scratch, 'digest', place)
  same = before == {path: path.read_bytes() for path in sorted(place.rglob('*')) if path.is_file()}
  read = actual[0] == 2 and field in actual[1] if kind == 'of the other' else actual[0] == 0
  ok = status == 2 and field in output and '\n' not in output and same and read
  return {'field': field, 'config': kind, 'status': status, 'said': output[-200:], 'untouched': same, 'ok': ok}


def late_full_disk(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Fill the disk of a finished run, or have one too small for a checkpoint: one line, and nothing half written."""
  disk, small = scratch / 'late', number % 2 == 1
  with breaking.small_disk(disk, 900 if small else 16_000):
    place = disk / 'run'
    if not small:
      shutil.copytree(_short(scratch), place)
      breaking.fill(disk / 'filling', shutil.disk_usage(disk).free - rng.choice([0, 1, 2, 8]) * 4096)
    process = start(scratch, place, '--config.train.epochs=2')
    status, output = finish(process)
    left = [
      path.name
      for path in place.rglob('*')
      if path.is_file() and (path.suffix in ('.tmp', '.part') or not path.stat().st_size)
    ]
    good = small or damage(place, newest(place)) is None
    logged = (place / 'metrics.jsonl').exists() if small else False
  told = (
    status == 2
    and output.startswith('error: ')
    and 'the disk is full' in output
    and '\n' not in output
    and str(disk) in output
  )
  return {
    'small': small,
    'status': status,
    'said': output[-250:],
    'left': left,
    'ok': (told or (status == 0 and not small)) and not left and good and not logged,
  }


def _short(scratch: pathlib.Path) -> pathlib.Path:
  """Return a finished run of two epochs."""
  place = scratch / 'short'
  if not (place / 'curves.png').exists():
    assert finish(start(scratch, place, '--config.train.epochs=2')) == (0, '')
  return place


def close_output(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Train to an output that is closed, full or ASCII, and see that the run ends as any other."""
  place, expected = scratch / 'closed', run_uninterrupted(scratch)
  shutil.rmtree(place, ignore_errors=True)
  redirect = ['| head -1', '> /dev/full', '>&- 2>&- <&-', '> /dev/full 2>&1', '| true', '>&-'][number % 6]
  shell = f'set -o pipefail; "$0" main.py --config {TINY} --workdir "$1" {LENGTH} {redirect}'
  more = {'PYTHONIOENCODING': 'ascii'} if rng.random() < 0.5 else {}
  done = subprocess.run(
    ['bash', '-c', shell, sys.executable, str(place)],
    cwd=ROOT,
    env=environment(scratch, **more),
    capture_output=True,
    text=True,
  )
  alike = done.returncode == 0 and digest(place) == expected
  return {
    'redirect': redirect,
    'status': done.returncode,
    'said': done.stderr[-200:],
    'ends_alike': alike,
    'ok': alike and 'Traceback' not in done.stderr,
  }


def live_readers(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Look at the checkpoints of a run while it trains, in every way that a tool does, and see that no look is wrong."""
  from jaxres import workdir
  from jaxres.doctor import run as run_checks

  place, expected = scratch / 'live', run_uninterrupted(scratch)
  shutil.rmtree(place, ignore_errors=True)
  process = start(scratch, place, LENGTH)
  looks, wrong = 0, []
  while process.poll() is None:
    if not newest(place):
      time.sleep(0.01)
      continue
    try:
      workdir.read_step(place, None)
      wrong += [
        row.finding for row in run_checks.check_workdir(place) if row.verdict == 'problem' or 'cut short' in row.finding
      ]
    except InputError as error:
      wrong.append(str(error))
    looks += 2
  status, output = finish(process)
  ok = status == 0 and not output and not wrong and looks > 0 and digest(place) == expected
  return {'looks': looks, 'wrong': wrong[:3], 'status': status, 'ok': ok}
