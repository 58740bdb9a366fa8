"""Checks of a run: its files, its checkpoints, a step that was not finite."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxres import workdir as workdir_lib
from jaxres.checkpoint import digests, reader
from jaxres.checkpoint import steps as steps_lib
from jaxres.checkpoint.about import check_made_by
from jaxres.doctor import machine as machine_checks
from jaxres.doctor.check import Check, Checks
from jaxres.errors import InputError
from jaxres.files import DamagedError
from jaxres.log import rows
from jaxres.paths import check_utf8
from jaxres.runtime.lock import find_trainer
from jaxres.train import nonfinite
from jaxres.weights import sources

SHOWN_IDS = 8  # of a bad batch
RUN_FILES: dict[str, Callable[[pathlib.Path], Any]] = {
  'config.json': workdir_lib.read_config,
  'data.json': workdir_lib.check_data_files,
  'environment.json': workdir_lib.read_environment,
}


def check_workdir(directory: pathlib.Path) -> Checks:
  """Check a run: its files, and every checkpoint."""
  checkpoints = check_utf8(directory, '--workdir').absolute() / 'checkpoints'
  if not checkpoints.is_dir():
    inside = sources.runs_in(directory)
    if inside:
      raise InputError(
        '--workdir', f'{directory}: {len(inside)} runs are in it', fix=f'name one: {" ".join(map(str, inside[:8]))}'
      )
    raise InputError('--workdir', f'{directory}: no checkpoints there', expected='the workdir of a run')
  if holder := find_trainer(directory):
    yield Check('training', 'ok', f'{holder} says that it trains here')
  steps = check_checkpoints(checkpoints, workdir_lib.read_json(directory, 'config.json'))
  intact = sum(check.verdict != 'problem' for check in steps)
  yield from steps
  if not steps:
    yield Check('checkpoints', 'warning', 'none yet: the same command starts over')
  elif not intact and not any('Permission denied' in check.finding for check in steps):
    yield Check(
      'checkpoints', 'problem', f'{checkpoints}: none of {len(steps)} can be read; move them away to start over'
    )
  for path in sorted(checkpoints.glob('*.bad*')):
    yield Check(path.name, 'warning', f'{path}: damaged, was put aside')
  for path in () if holder else sorted(checkpoints.glob('*tmp*')):  # a training that goes on has some
    yield Check(path.name, 'warning', f'{path}: left by a save that was cut short; the next run deletes it')
  for name in steps_lib.list_unknown(checkpoints):
    yield Check(f'checkpoints/{name}', 'warning', f'{checkpoints / name}: no checkpoint, though it is called as one')
  yield from check_run_files(directory)
  for path in sorted(directory.glob('bad_step_*.npz')):
    yield Check(path.name, 'warning', f'a step was not finite: jaxres doctor --replay {path}')
  yield machine_checks.check_disk(directory)


def check_run_files(directory: pathlib.Path) -> Checks:
  """Check what a run has written beside its checkpoints; yield what is damaged."""
  for name, read in RUN_FILES.items():
    try:
      read(directory)
    except DamagedError as error:
      yield Check(name, 'problem', f'{error}')
  _, damage = rows.read(directory / 'metrics.jsonl')
  if damage:
    yield Check('metrics.jsonl', 'warning', damage)


def check_checkpoints(directory: pathlib.Path, config: Mapping[str, Any] | None) -> list[Check]:
  """Check every checkpoint; again where a training has meanwhile replaced one that cannot be read."""
  checks: list[Check] = []
  for _ in range(reader.MAX_LOOKS):
    paths = steps_lib.list_checkpoints(directory)
    before = steps_lib.identities(paths)
    checks = [verify_checkpoint(path, config) for path in paths.values()]
    damaged = any(check.verdict == 'problem' for check in checks)
    if not damaged or steps_lib.identities(steps_lib.list_checkpoints(directory)) == before:
      break
  return checks


def verify_checkpoint(path: pathlib.Path, config: Mapping[str, Any] | None = None) -> Check:
  """Read all of a checkpoint and compare it with its digests, and what it was made by with ``config``.

  Args:
    path: of the checkpoint.
    config: of the run, where it is known.
  """
  subject = f'checkpoint {path.name}'
  if path.exists() and not os.access(path, os.R_OK | os.X_OK):
    return Check(subject, 'problem', f'{path}: cannot be read: Permission denied')
  try:
    saved = reader.read(path)
    check_made_by(saved.about, config, path)
  except reader.DamagedError as error:
    return Check(subject, 'problem', f'damaged: {error}')
  except InputError as error:
    return Check(subject, 'problem', str(error))
  bad = next((name for name, array in saved.state.items() if not digests.is_finite(array)), None)
  if bad:
    return Check(subject, 'problem', f'{bad} is not finite')
  size = sum(array.nbytes for array in saved.state.values()) / 1e6
  if not saved.verified:
    return Check(
      subject, 'warning', f'{len(saved.state)} arrays, {size:,.1f} MB; saved without digests by an older jaxres'
    )
  finding = f'{len(saved.state)} arrays, {size:,.1f} MB, all as they were saved'
  return Check(subject, 'ok', f'{finding}; digest {digests.state_digest(saved.digests, saved.progress)[:16]}')


def replay_bad_step(path: pathlib.Path) -> Checks:
  """Run a bad step again."""
  then, now, ids = nonfinite.replay(path)
  yield Check('then', 'problem', then.describe())
  shown = ', '.join(map(str, ids[:SHOWN_IDS])) + (', ...' if len(ids) > SHOWN_IDS else '')
  yield Check('examples', 'ok', f'{len(ids)} of the training split: {shown} (all of them: ids in the file)')
  if now.bad:
    yield Check('now', 'problem', f'again {now.describe()}')
  else:
    yield Check('now', 'warning', f'{now.describe()}: it does not happen again, so look at the machine and its memory')
