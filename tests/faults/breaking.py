"""Trials that break a run, or what it saved: each returns a row of the results."""

import contextlib
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from jaxres.checkpoint import digests as digests_lib
from jaxres.checkpoint import reader
from jaxres.checkpoint import steps as steps_lib
from jaxres.data import sampler
from jaxres.runtime import signals
from tests.faults import inject
from tests.faults.runs import (
  LENGTH,
  Row,
  damage,
  digest,
  environment,
  finish,
  newest,
  run_uninterrupted,
  start,
  start_pair,
)
from tests.faults.table import ROOT


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
  """Kill a run, and see that what was committed is intact; when it ends, that it ends as if nothing had been."""
  workdir = scratch / 'killed'
  expected = run_uninterrupted(scratch)
  process = start(scratch, workdir, LENGTH)
  moment(process, workdir, rng)
  committed = newest(workdir)
  process.kill()
  status, output = finish(process)
  actual: Row = {'status': status, 'committed': committed, 'newest': newest(workdir)}
  if status == 0:  # it had ended before
    actual['ends_alike'] = digest(workdir) == expected
    shutil.rmtree(workdir)
    return actual | {'ok': actual['ends_alike'] and not output}
  steps = steps_lib.list_steps(workdir / 'checkpoints')
  actual['damaged'] = {step: reason for step in steps if (reason := damage(workdir, step))}
  return actual | {'ok': status == -9 and newest(workdir) >= committed and not actual['damaged']}


def send_signals(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Ask a run to stop, and see that it saves, says so and exits as it must; every fourth time asked twice."""
  workdir = scratch / 'signalled'
  expected = run_uninterrupted(scratch)
  process = start(scratch, workdir, LENGTH)
  moment(process, workdir, rng)
  which, twice = rng.choice([signal.SIGTERM, signal.SIGINT]), number % 4 == 3
  before, started = newest(workdir), time.monotonic()
  if process.poll() is None:
    process.send_signal(which)
    if twice:
      time.sleep(signals.SAME_SECONDS + 0.05 + rng.random() * 0.5)
      process.send_signal(which)
  status, output = finish(process)
  actual: Row = {
    'signal': which.name,
    'twice': twice,
    'status': status,
    'grace_s': round(time.monotonic() - started, 3),
  }
  if status == 0:
    actual['ends_alike'] = digest(workdir) == expected
    shutil.rmtree(workdir)
    return actual | {'ok': actual['ends_alike'] and not output}
  actual['said'] = output
  complete = damage(workdir, newest(workdir)) if newest(workdir) else None
  told = output == f'{which.name}: step {newest(workdir)} is saved; the same command continues the run'
  at_once = twice and newest(workdir) >= before and output.startswith('stopped at once')
  interrupted = status == 130 and output == 'interrupted; the same command continues the run'
  outside = newest(workdir) == before and (status == -which or interrupted)  # before the training, or behind it
  leaving = twice and told and status == -which  # the second came when all was done; a shell says 128 + which too
  exits = (status == 128 + which and (told or at_once)) or leaving
  return actual | {'ok': complete is None and (exits or outside)}


def signal_pair(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Ask one of two processes to stop, and see that both save the same step, say so and exit as they must."""
  workdir, asked = scratch / 'pair', rng.randrange(2)
  expected = run_uninterrupted(scratch, processes=2)
  processes = start_pair(scratch, workdir)
  moment(processes[0], workdir, rng)
  start = time.monotonic()
  if processes[asked].poll() is None:
    processes[asked].send_signal(signal.SIGTERM)
  statuses, output = zip(*map(finish, processes), strict=True)
  actual: Row = {'asked': asked, 'statuses': statuses, 'grace_s': round(time.monotonic() - start, 3)}
  if statuses == (0, 0):
    actual['ends_alike'] = digest(workdir) == expected
    shutil.rmtree(workdir)
    return actual | {'ok': actual['ends_alike']}
  actual['said'] = [words.splitlines()[-1:] for words in output]  # JAX and Orbax say before that they saw the signal
  line = f'SIGTERM: step {newest(workdir)} is saved; the same command continues the run'
  ok = statuses == (143, 143) and actual['said'] == [[line]] * 2 and damage(workdir, newest(workdir)) is None
  return actual | {'ok': ok}


def leave_files(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Leave a run by an exception while it saves, and see that the save is committed and the process ends."""
  workdir, file, way = scratch / 'left', scratch / 'left.step', ('error', 'exit', 'interrupt')[number % 3]
  file.unlink(missing_ok=True)
  expected = run_uninterrupted(scratch)
  leave = f'{way},{rng.randrange(4)},{file}'
  status, output = finish(start(scratch, workdir, LENGTH, config='tests/faults/leaving.py', JAXRES_LEAVE=leave))
  actual: Row = {'way': way, 'status': status, 'newest': newest(workdir)}
  if status == 0:
    actual['ends_alike'] = digest(workdir) == expected
    shutil.rmtree(workdir)
    return actual | {'ok': actual['ends_alike'] and not output}
  actual |= {'said': output[-200:], 'saved': int(file.read_text()), 'damaged': damage(workdir, newest(workdir))}
  ends = {'error': (1, 'RuntimeError: left'), 'exit': (3, ''), 'interrupt': (130, 'interrupted')}
  ended = status == ends[way][0] and ends[way][1] in output
  return actual | {'ok': ended and actual['newest'] == actual['saved'] and not actual['damaged']}


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
    process = start(scratch, workdir, LENGTH)
    while process.poll() is None and not newest(workdir):
      time.sleep(0.01)
    midway = number % 2 == 1  # behind the look at the free space
    while midway and process.poll() is None and not [*(workdir / 'checkpoints').glob('*tmp*')]:
      time.sleep(0.0005)
    room = 0 if midway else rng.choice([0, 10, 100, 400, 1000, 1100, 1300]) * 1024 + rng.randrange(4096)
    fill(disk / 'filling', shutil.disk_usage(disk).free - room)
    status, output = finish(process)
    steps = steps_lib.list_steps(workdir / 'checkpoints')
    damaged = [step for step in steps if damage(workdir, step)]
    leftovers = [path.name for path in (workdir / 'checkpoints').glob('*tmp*')]
    (disk / 'filling').unlink()
    resumed, _ = finish(start(scratch, workdir, LENGTH))
    alike = resumed == 0 and digest(workdir) == run_uninterrupted(scratch)
  one_line = status == 2 and output.startswith('error: ') and 'the disk is full' in output and '\n' not in output
  ok = (one_line or status == 0) and bool(steps) and not damaged and not leftovers and alike
  return {
    'room': room,
    'status': status,
    'said': output[-300:],
    'steps': steps,
    'left': leftovers,
    'ends_alike': alike,
    'ok': ok,
  }


def fill(path: pathlib.Path, size: int) -> None:
  with contextlib.suppress(OSError), path.open('wb') as file:
    for _ in range(max(size, 0) // 4096):
      file.write(bytes(4096))
      file.flush()


def corrupt(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Damage a file of a run's newest checkpoint, and see that nothing else than what was saved is read or restored."""
  from jaxres import checkpoint

  run_uninterrupted(scratch)
  source, copy = scratch / 'run_uninterrupted/checkpoints', scratch / 'corrupted'
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(source, copy)
  steps = steps_lib.list_steps(source)
  true = {step: reader.read(source / str(step)) for step in steps}
  files, kind = inject.files(copy / str(steps[-1])), inject.KINDS[number % len(inject.KINDS)]
  sizes = [path.stat().st_size for path in files]
  victim = rng.choices(files, sizes if rng.random() < 0.5 else None)[0]
  inject.damage(victim, kind, rng)
  reason = reader.find_damage(copy / str(steps[-1]))
  with contextlib.redirect_stderr(None), checkpoint.open_manager(copy, keep_latest=2) as manager:
    step = manager.latest_step()
    read = reader.read(copy / str(step))
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
  step = next(step for step in range(8) if place in sampler.train_indices(seed, step, 16, 128))
  kind = ('pixel', 'gradient', 'overflow')[number % 3]
  words = [f'--config.data.path={path}', f'--config.data.seed={seed}', '--config.data.val=0.0']
  words += ['--config.train.eval_every_epochs=0.125', f'--config.train.scan_steps={rng.choice([1, 3])}']
  process = start(scratch, workdir, *words, config='tests/faults/poisoned.py', JAXRES_POISON=kind)
  status, output = finish(process)
  saved = [reader.read(workdir / f'checkpoints/{step}') for step in steps_lib.list_steps(workdir / 'checkpoints')]
  finite = all(digests_lib.is_finite(array) for each in saved for array in each.state.values())
  named = output.startswith(f'error: step {step} is not finite') and '\n' not in output
  file = workdir / f'bad_step_{step}.npz'
  ids = np.load(file)['ids'] if file.exists() else []
  ok = status == 2 and named and finite and place in ids
  return {'poison': kind, 'step': step, 'status': status, 'said': output[:200], 'checkpoints': len(saved), 'ok': ok}


def other_devices(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Restore what 8 devices saved on fewer, save it there, restore that on 8, and go on with fewer."""
  count, optimizer = (1, 2, 4)[number % 3], ('whole', 'sharded')[number // 3 % 2]
  workdir = scratch / 'devices'
  shutil.rmtree(workdir, ignore_errors=True)
  flags = lambda count: {'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'}
  sharded = f'--config.train.shard_optimizer={optimizer == "sharded"}'
  first, output = finish(start(scratch, workdir / 'run', sharded, '--config.train.epochs=2', **flags(8)))
  paths = [workdir / 'run/checkpoints', workdir / 'fewer', workdir / 'eight']
  for source, to, devices in ((paths[0], paths[1], count), (paths[1], paths[2], 8)):
    command = [sys.executable, 'tests/faults/resave.py', source, to, optimizer]
    subprocess.run(command, cwd=ROOT, env=environment(scratch, **flags(devices)), check=True, capture_output=True)
  digests = {str(reader.read(path / str(steps_lib.list_steps(path)[-1])).digests) for path in paths}
  status, output = finish(start(scratch, workdir / 'run', sharded, '--config.train.epochs=3', **flags(count)))
  actual: Row = {'devices': count, 'optimizer': optimizer, 'states': len(digests), 'statuses': [first, status]}
  return actual | {'ok': actual['states'] == 1 and actual['statuses'] == [0, 0] and not output}
