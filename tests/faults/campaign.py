"""Break real runs of main.py, many times, and see that nothing is lost: one JSON line a trial.

python tests/faults/campaign.py --kills 200 --signals 50 --full_disks 20 --corruptions 300 --nans 30 --configs 50
    --images 100

Stopped and started again it goes on where it was. ``python tests/faults/table.py`` writes docs/reliability.md from it.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from jaxres import integrity
from jaxres.data import order
from tests.faults import inject
from tests.faults.table import RESULTS, ROOT, rows

TINY = 'tests/faults/tiny.py'
LENGTH = '--config.train.epochs=40'  # 320 steps: some seconds behind the compilation
Row = dict[str, Any]


def main() -> int:
  """Do what is left of the trials; return the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for kind in TRIALS:
    parser.add_argument(f'--{kind}', type=int, default=0, help='trials in all, with those that were done before')
  parser.add_argument('--out', type=pathlib.Path, default=RESULTS)
  parser.add_argument('--scratch', type=pathlib.Path, default=pathlib.Path('/tmp/jaxres-faults'))
  args = parser.parse_args()
  args.scratch.mkdir(parents=True, exist_ok=True)
  failures = 0
  for kind, trial in TRIALS.items():
    done = sum(row['kind'] == kind for row in rows(args.out))
    for number in range(done, getattr(args, kind)):
      start = time.monotonic()
      found = trial(number, args.scratch, random.Random(f'{kind} {number}'))
      date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      row = {'kind': kind, 'trial': number} | found | {'seconds': round(time.monotonic() - start, 1), 'date': date}
      failures += not row['ok']
      with args.out.open('a') as file:
        file.write(json.dumps(row) + '\n')
      print(json.dumps(row), flush=True)
  return int(failures > 0)


def environment(scratch: pathlib.Path, **more: str) -> dict[str, str]:
  kept = {name: value for name, value in os.environ.items() if name not in ('XLA_FLAGS', 'JAXRES_POISON')}
  return kept | {'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(scratch / 'cache'), 'JAX_PLATFORMS': 'cpu'} | more


def begin(
  scratch: pathlib.Path, workdir: pathlib.Path, *words: str, config: str = TINY, **more: str
) -> subprocess.Popen:
  """Start a run of main.py."""
  command = [sys.executable, 'main.py', '--config', config, '--workdir', str(workdir), *words]
  pipes = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE}
  return subprocess.Popen(command, cwd=ROOT, env=environment(scratch, **more), text=True, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str]:
  """Wait for a run; return its status and its errors, without Orbax's warnings of slowness."""
  _, said = process.communicate(timeout=1200)
  lines = [line for line in said.splitlines() if 'Waiting for previous save' not in line]
  return process.returncode, '\n'.join(lines)


def newest(workdir: pathlib.Path) -> int:
  return max(integrity.numbered(workdir / 'checkpoints'), default=0)


def damage(workdir: pathlib.Path, step: int) -> str | None:
  return integrity.damage(workdir / 'checkpoints' / str(step))


def digest(workdir: pathlib.Path) -> str:
  saved = integrity.read(workdir / 'checkpoints' / str(newest(workdir)))
  return f'{newest(workdir)} {integrity.state_digest(saved.digests, saved.progress)}'


def uninterrupted(scratch: pathlib.Path) -> str:
  """Return the digest that a run ends with that nothing breaks; trained once."""
  workdir = scratch / 'uninterrupted'
  kept = scratch / 'uninterrupted.digest'
  if not kept.exists():
    shutil.rmtree(workdir, ignore_errors=True)
    status, said = finish(begin(scratch, workdir, LENGTH))
    assert status == 0, said
    kept.write_text(digest(workdir))
  return kept.read_text()


def moment(process: subprocess.Popen, workdir: pathlib.Path, rng: random.Random) -> None:
  """Wait until the run trains or, half of the times, has saved, and then for a random while; or until it has ended."""
  log = workdir / 'metrics.jsonl'
  size = lambda: log.stat().st_size if log.exists() else -1
  count = rng.choice([size, lambda: newest(workdir)])
  before = count()
  while process.poll() is None and count() <= before:
    time.sleep(0.005)
  until = time.monotonic() + rng.random() * rng.choice([0.1, 1.0])
  while process.poll() is None and time.monotonic() < until:
    time.sleep(0.002)


def kill(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Kill a run, and see that what was committed is whole; when it ends, that it ends as if nothing had been."""
  workdir = scratch / 'killed'
  expected = uninterrupted(scratch)
  process = begin(scratch, workdir, LENGTH)
  moment(process, workdir, rng)
  committed = newest(workdir)
  process.kill()
  status, said = finish(process)
  found: Row = {'status': status, 'committed': committed, 'newest': newest(workdir)}
  if status == 0:  # it had ended before
    found['ends_alike'] = digest(workdir) == expected
    shutil.rmtree(workdir)
    return found | {'ok': found['ends_alike'] and not said}
  steps = integrity.numbered(workdir / 'checkpoints')
  found['damaged'] = {step: reason for step in steps if (reason := damage(workdir, step))}
  return found | {'ok': status == -9 and newest(workdir) >= committed and not found['damaged']}


def signalled(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Ask a run to stop, and see that it saves, says so and exits as it must; every fourth time asked twice."""
  workdir = scratch / 'signalled'
  expected = uninterrupted(scratch)
  process = begin(scratch, workdir, LENGTH)
  moment(process, workdir, rng)
  which, twice = rng.choice([signal.SIGTERM, signal.SIGINT]), number % 4 == 3
  before, start = newest(workdir), time.monotonic()
  if process.poll() is None:
    process.send_signal(which)
    if twice:
      time.sleep(rng.random() * 0.05)
      process.send_signal(which)
  status, said = finish(process)
  found: Row = {'signal': which.name, 'twice': twice, 'status': status, 'grace_s': round(time.monotonic() - start, 3)}
  if status == 0:
    found['ends_alike'] = digest(workdir) == expected
    shutil.rmtree(workdir)
    return found | {'ok': found['ends_alike'] and not said}
  found['said'] = said
  whole = damage(workdir, newest(workdir)) if newest(workdir) else None
  told = said == f'{which.name}: step {newest(workdir)} is saved; the same command continues the run'
  at_once = twice and newest(workdir) >= before and said.startswith('stopped at once')
  return found | {'ok': status == 128 + which and whole is None and (told or at_once)}


@contextlib.contextmanager
def small_disk(path: pathlib.Path, kilobytes: int) -> Iterator[None]:
  path.mkdir(parents=True, exist_ok=True)
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', str(path)], check=True)
  try:
    yield
  finally:
    subprocess.run(['umount', str(path)], check=True)


def full_disk(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Fill the disk of a run behind its first save, more or less, and see that one line says so and all saves restore."""
  disk = scratch / 'disk'
  with small_disk(disk, 16_000):
    workdir = disk / 'run'
    process = begin(scratch, workdir, LENGTH)
    while process.poll() is None and not newest(workdir):
      time.sleep(0.01)
    midway = number % 2 == 1  # behind the look at the free space
    while midway and process.poll() is None and not [*(workdir / 'checkpoints').glob('*tmp*')]:
      time.sleep(0.0005)
    room = 0 if midway else rng.choice([0, 10, 100, 400, 1000, 1100, 1300]) * 1024 + rng.randrange(4096)
    fill(disk / 'filling', shutil.disk_usage(disk).free - room)
    status, said = finish(process)
    steps = integrity.numbered(workdir / 'checkpoints')
    damaged = [step for step in steps if damage(workdir, step)]
    left = [path.name for path in (workdir / 'checkpoints').glob('*tmp*')]
    (disk / 'filling').unlink()
    resumed, _ = finish(begin(scratch, workdir, LENGTH))
    alike = resumed == 0 and digest(workdir) == uninterrupted(scratch)
  one_line = status == 2 and said.startswith('error: the disk is full') and '\n' not in said
  ok = (one_line or status == 0) and bool(steps) and not damaged and not left and alike
  return {
    'room': room,
    'status': status,
    'said': said[-300:],
    'steps': steps,
    'left': left,
    'ends_alike': alike,
    'ok': ok,
  }


def fill(path: pathlib.Path, size: int) -> None:
  with contextlib.suppress(OSError), path.open('wb') as file:
    for _ in range(max(size, 0) // 4096):
      file.write(bytes(4096))
      file.flush()


def corrupted(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Damage a file of a run's newest checkpoint, and see that nothing else than what was saved is read or restored."""
  from jaxres import checkpoint

  uninterrupted(scratch)
  source, copy = scratch / 'uninterrupted/checkpoints', scratch / 'corrupted'
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(source, copy)
  steps = integrity.numbered(source)
  true = {step: integrity.read(source / str(step)) for step in steps}
  files, kind = inject.files(copy / str(steps[-1])), inject.KINDS[number % len(inject.KINDS)]
  sizes = [path.stat().st_size for path in files]
  victim = rng.choices(files, sizes if rng.random() < 0.5 else None)[0]
  inject.damage(victim, kind, rng)
  reason = integrity.damage(copy / str(steps[-1]))
  with contextlib.redirect_stderr(None), checkpoint.open(copy, keep_latest=2) as manager:
    step = manager.latest_step()
    read = integrity.read(copy / str(step))
  right = (read.digests, read.progress) == (true[step].digests, true[step].progress)
  fell_back = step != steps[-1]
  file = str(victim.relative_to(copy / str(steps[-1])))
  ok = right and fell_back == bool(reason) and (copy / f'{steps[-1]}.bad').exists() == fell_back
  return {'file': file, 'damage': kind, 'said': (reason or '')[:120], 'fell_back': fell_back, 'ok': ok}


def nan(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Poison one training image, and see that the run stops at the step that meets it, with nothing bad saved."""
  workdir, path, place = scratch / 'poisoned', scratch / 'poison.npz', rng.randrange(128)
  shutil.rmtree(workdir, ignore_errors=True)
  images = lambda size: np.random.default_rng(number).integers(0, 200, (size, 8, 8, 1)).astype(np.uint8)
  train = images(128)
  train[place] = 255
  np.savez(path, train_x=train, train_y=np.arange(128) % 10, test_x=images(40), test_y=np.arange(40) % 10)
  seed = rng.randrange(1000)
  step = next(step for step in range(8) if place in order.train_indices(seed, step, 16, 128))
  kind = ('pixel', 'gradient', 'overflow')[number % 3]
  words = [f'--config.data.path={path}', f'--config.data.seed={seed}', '--config.data.val=0.0']
  words += ['--config.train.eval_every_epochs=0.125', f'--config.train.scan_steps={rng.choice([1, 3])}']
  process = begin(scratch, workdir, *words, config='tests/faults/poisoned.py', JAXRES_POISON=kind)
  status, said = finish(process)
  saved = [integrity.read(workdir / f'checkpoints/{step}') for step in integrity.numbered(workdir / 'checkpoints')]
  finite = all(integrity.is_finite(array) for each in saved for array in each.state.values())
  named = said.startswith(f'error: step {step} is not finite') and '\n' not in said
  file = workdir / f'bad_step_{step}.npz'
  ids = np.load(file)['ids'] if file.exists() else []
  ok = status == 2 and named and finite and place in ids
  return {'poison': kind, 'step': step, 'status': status, 'said': said[:200], 'checkpoints': len(saved), 'ok': ok}


def bad_config(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Misspell a field, or give it a value of another type, and see that one line names it, in less than 2 seconds."""
  from jaxres import config

  section = rng.choice(sorted(config.SECTIONS))
  field = rng.choice(sorted(config.schema(section)))
  hint = config.describe(config.schema(section)[field].hint)
  kinds = ['letter', 'section', *(['type'] if 'str' not in hint and "'" not in hint else [])]
  kind = kinds[number % len(kinds)]
  at = rng.randrange(len(field))
  wrong = field[:at] + rng.choice('xqz') + field[at + 1 :]
  word = {
    'letter': f'{section}.{wrong}=1',
    'section': f'{section[:-1]}q.{field}=1',
    'type': f'{section}.{field}=banana',
  }[kind]
  start = time.monotonic()
  process = begin(scratch, scratch / 'never', f'--config.{word}', config='configs/digits.py')
  status, said = finish(process)
  seconds = time.monotonic() - start
  named = said.startswith('error: ') and '\n' not in said and (wrong if kind == 'letter' else field) in said + word
  hinted = kind == 'type' or field in said or section in said or 'known:' in said
  ok = status == 2 and named and hinted and not (scratch / 'never').exists()
  return {'word': word, 'status': status, 'said': said[:200], 'run_s': round(seconds, 2), 'ok': ok}


def bad_image(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Damage one image of a folder, and see that one line names it before anything is compiled."""
  from PIL import Image

  folder, workdir = scratch / 'folder', scratch / 'never'
  shutil.rmtree(folder, ignore_errors=True)
  for split, size in (('train', 8), ('test', 4)):
    for at in range(size):
      path = folder / split / f'class{at % 2}' / f'{at}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = np.random.default_rng(at).integers(0, 255, (8, 8, 3)).astype(np.uint8)
      Image.fromarray(pixels).save(path)
  victim = rng.choice(inject.files(folder))
  content = victim.read_bytes()
  kind = ('truncated', 'empty', 'text', 'header')[number % 4]
  victim.write_bytes(
    {
      'truncated': content[: rng.randrange(1, len(content) - 20)],
      'empty': b'',
      'text': b'no image',
      'header': b'\0' * 8 + content[8:],
    }[kind]
  )
  words = ['--config.data.name=folder', f'--config.data.path={folder}', '--config.data.image_size=8']
  words += ['--config.data.batch_size=4', '--config.data.val=0.0']
  status, said = finish(begin(scratch, workdir, *words))
  name = str(victim.relative_to(folder))
  ok = status == 2 and '\n' not in said and name in said and not workdir.exists()
  return {'damage': kind, 'file': name, 'status': status, 'said': said[:200], 'ok': ok}


TRIALS: dict[str, Callable[[int, pathlib.Path, random.Random], Row]] = {
  'kills': kill,
  'signals': signalled,
  'full_disks': full_disk,
  'corruptions': corrupted,
  'nans': nan,
  'configs': bad_config,
  'images': bad_image,
}


if __name__ == '__main__':
  sys.exit(main())
