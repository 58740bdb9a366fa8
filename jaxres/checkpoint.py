"""Checkpoints by Orbax: the state, and beside it its digests, the progress of the run and what it was made by."""

import contextlib
import errno
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxres import __version__, distributed, integrity, trees
from jaxres.errors import InputError
from jaxres.state import TrainState

BEST_METRIC = 'val/top1'
REPLACED = '.replaced'  # ends the name of a checkpoint that makes way for another of its step
DELETED = 'deleted'  # where a checkpoint goes before it is deleted: a half deleted one would look like a damaged one
MARGIN_BYTES = 1 << 20  # of a save, beside the arrays: metadata, digests, the run's other files
AGAIN = 'make room and give the same command again'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@contextlib.contextmanager
def open(
  directory: str | pathlib.Path, /, *, keep_latest: int = 1, keep_best: int = 1
) -> Iterator[ocp.CheckpointManager]:
  """Open the checkpoints in ``directory``; leaving the context waits until every save is committed.

  Each checkpoint is read and compared with its digests first. A damaged one is renamed to ``<step>.bad``, with a line
  that says what is wrong with it, and never deleted: the run goes on from the newest that is whole.

  Args:
    directory: made where it is missing.
    keep_latest: keep this many of the newest checkpoints.
    keep_best: keep also this many with the best validation top-1, where there is a validation split.

  Raises:
    InputError: a number is out of range, no checkpoint of several is whole, or the disk is full.
  """
  check(keep_latest=keep_latest, keep_best=keep_best)
  directory = pathlib.Path(directory).absolute()
  _take_back(directory)
  put_damaged_aside(directory)
  best = BestN(get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False)
  options = ocp.CheckpointManagerOptions(
    best_fn=rank,  # or the metrics are not stored, and a manager that is opened again knows of no best
    preservation_policy=AnyPreservationPolicy([LatestN(keep_latest), best]),
    cleanup_tmp_directories=True,
    todelete_subdir=DELETED,
  )
  with _full_disk_explained(directory), _quiet_threads(), ocp.CheckpointManager(directory, options=options) as manager:
    yield manager
    _finish(manager)


def check(*, keep_latest: int, keep_best: int) -> None:
  """Raise InputError where ``open`` would."""
  if keep_latest < 1 or keep_best < 0:
    raise InputError(f'checkpoint: expected keep_latest >= 1, keep_best >= 0; found {keep_latest}, {keep_best}')


def put_damaged_aside(directory: pathlib.Path) -> None:
  """Rename the checkpoints in ``directory`` that are not what was saved, and say why.

  Raises:
    InputError: there are checkpoints, and none is whole; nothing is renamed then.
  """
  _put_odd_aside(directory)
  steps = integrity.numbered(directory)
  damaged = {step: reason for step in steps if (reason := _damage(directory / str(step)))}
  if steps and len(damaged) == len(steps):
    reason = f'step {steps[-1]}: {damaged[steps[-1]]}'
    raise InputError(f'{directory}: none of {len(steps)} checkpoints is whole: {reason}; move them away to begin anew')
  for step, reason in damaged.items():
    if distributed.leads():
      aside = integrity.put_aside(directory / str(step))
      print(f'checkpoint {step} is damaged: {reason}; it is now {aside}', file=sys.stderr)
  if damaged:
    distributed.meet('damaged checkpoints are put aside')


def _put_odd_aside(directory: pathlib.Path) -> None:
  """Rename what reads like a step and is no checkpoint, such as a file: it would be in the way of a save."""
  odd = integrity.odd(directory)
  for name in odd if distributed.leads() else ():
    aside = integrity.put_aside(directory / name)
    print(f'{directory / name} is no checkpoint; it is now {aside}', file=sys.stderr)
  if odd:
    distributed.meet('what is no checkpoint is put aside')


def _damage(path: pathlib.Path) -> str | None:
  """Return what is wrong with a checkpoint; where one of several processes finds anything, so do all."""
  found = integrity.damage(path)
  if jax.process_count() > 1 and multihost_utils.process_allgather(np.array(found is not None)).any():
    return found or 'another process cannot read it'
  return found


def save(
  manager: ocp.CheckpointManager,
  state: TrainState,
  progress: Mapping[str, Any],
  scores: Mapping[str, float],
  config: Mapping[str, Any] | None = None,
  *,
  commit: bool = False,
) -> None:
  """Save ``state`` under its step, in the background, when the save before it is committed.

  Args:
    manager: of ``open``.
    state: may be donated as soon as this returns.
    progress: JSON; what else a resumed run must know.
    scores: metrics of this step; ``val/top1`` among them makes it a candidate for the best.
    config: of the run, to be kept beside the state.
    commit: return when it is on the disk.

  Raises:
    InputError: the state has a NaN or an infinity, or there is no room for it; what was saved before stays.
  """
  step, digests, size = int(state.step), {}, 0
  for name, array in integrity.leaves(state.present):
    if not integrity.is_finite(array):
      raise InputError(f'the state at step {step} is not saved: {name} is not finite; lower optim.lr')
    digests[name], size = integrity.leaf_digest(array), size + array.nbytes
  _finish(manager)  # which raises what went wrong with the save before
  check_space(manager.directory, size, step)
  _make_way(manager, step)
  metrics = {name: scores[name] for name in (BEST_METRIC,) if name in scores} | {'step': step}
  content = {'progress': dict(progress), 'metrics': metrics, 'about': describe(config or {}, step)}
  known = {'state': digests} | {name: integrity.json_digest(value) for name, value in content.items()}
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state.present),
    progress=ocp.args.JsonSave(content['progress']),
    about=ocp.args.JsonSave(content['about']),
    digests=ocp.args.JsonSave(known),
  )
  manager.save(step, args=items, metrics=metrics)
  if commit:
    _finish(manager)


def _finish(manager: ocp.CheckpointManager) -> None:
  """Wait until what is being saved is on the disk, and delete what made way for it."""
  manager.wait_until_finished()
  if distributed.leads():
    directory = pathlib.Path(manager.directory)
    for old in (*directory.glob(f'*{REPLACED}'), *directory.glob(DELETED)):
      shutil.rmtree(old)


def _make_way(manager: ocp.CheckpointManager, step: int) -> None:
  """Rename the checkpoint of ``step``, where there is one, until the new one of that step is committed."""
  if step in manager.all_steps():
    if distributed.leads():
      old = pathlib.Path(manager.directory) / str(step)
      os.rename(old, old.with_name(f'{step}{REPLACED}'))
    distributed.meet('a checkpoint makes way')
    manager.reload()


def _take_back(directory: pathlib.Path) -> None:
  """Take a checkpoint back that made way for one that was never committed; delete it where that was, and the rest."""
  if distributed.leads():
    for old in directory.glob(f'*{REPLACED}'):
      new = old.with_name(old.name.removesuffix(REPLACED))
      shutil.rmtree(old) if new.exists() else os.rename(old, new)
    shutil.rmtree(directory / DELETED, ignore_errors=True)
  distributed.meet('checkpoints are taken back')


def describe(config: Mapping[str, Any], step: int) -> dict[str, Any]:
  """Return what a checkpoint was made by: the config, its digest, the seed, the step, the versions, the devices."""
  options = {section: dict(fields) for section, fields in config.items()}
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {
    'step': step,
    'seed': options.get('train', {}).get('seed'),
    'config': options,
    'config_sha256': integrity.json_digest(options),
    'versions': {'jaxres': __version__, 'python': platform.python_version()} | versions,
    'devices': devices(),
  }


def devices() -> list[str]:
  """Return what a run is done on: how many devices of which kind, and how many processes."""
  return [f'{jax.device_count()} x {jax.devices()[0].device_kind}', f'{jax.process_count()} processes']


def check_space(directory: str | pathlib.Path, size: int, step: int) -> None:
  """Raise InputError where the disk of ``directory`` has no room for a state of ``size`` bytes."""
  free, needed = shutil.disk_usage(directory).free, size + MARGIN_BYTES
  if free < needed:
    found = f'{free / 1e6:,.1f} MB are free, and step {step} needs {needed / 1e6:,.1f} MB'
    raise InputError(f'the disk is full: {directory}: {found}; what was saved before is untouched; {AGAIN}')


@contextlib.contextmanager
def _full_disk_explained(directory: pathlib.Path) -> Iterator[None]:
  """Turn the errors of a full disk into an InputError, without what was half written."""
  try:
    yield
  except Exception as error:
    if isinstance(error, InputError) or not _is_full_disk(error):
      raise
    if distributed.leads():
      for partial in directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(partial, ignore_errors=True)
    kept = ', '.join(map(str, integrity.numbered(directory))) or 'none'
    raise InputError(f'the disk is full: {directory}: saved are the steps: {kept}; {AGAIN}') from error


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
  """Keep TensorStore's threads from printing, of each write that failed, that Orbax does not wait for it any more."""
  before = sys.unraisablehook

  def hook(found: Any) -> None:
    if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == 'Event loop is closed'):
      before(found)

  sys.unraisablehook = hook
  try:
    yield
  finally:
    sys.unraisablehook = before


def _is_full_disk(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if any(words in str(error) for words in ('No space left on device', 'Disk quota exceeded')):
      return True
    error = error.__cause__ or error.__context__
  return False


def rank(metrics: Mapping[str, float]) -> tuple[float, float]:
  """Return what the best checkpoint has most of: of equals it is the earliest, and without validation the latest."""
  top1 = metrics.get(BEST_METRIC)
  return (-1.0, metrics['step']) if top1 is None else (top1, -metrics['step'])


def restore(
  manager: ocp.CheckpointManager,
  template: TrainState,
  shardings: Any,
  step: int | None = None,
) -> tuple[TrainState, dict[str, Any]] | None:
  """Return the state and the progress saved at ``step``, the latest where it is None; None where nothing is saved.

  Args:
    manager: of ``open``.
    template: a ``TrainState`` of the shapes and dtypes to restore.
    shardings: where the arrays go: one for all, or a ``TrainState`` of them; they may lie on other devices, and as
      many, as those that saved.
    step: of an existing checkpoint.

  Raises:
    InputError: names, shapes or dtypes are not those of ``template``, or the content is not what was saved.
  """
  step = manager.latest_step() if step is None else step
  if step is None:
    return None
  path = pathlib.Path(manager.directory) / str(step)
  try:
    saved = integrity.read(path)
  except integrity.DamagedError as error:
    raise InputError(f'{path}: damaged: {error}') from None
  if not saved.verified and distributed.leads():
    print(f'checkpoint {step}: an older jaxres saved it, without digests: it cannot be verified', file=sys.stderr)
  if saved.about.get('devices') not in (None, devices()) and distributed.leads():
    before, now = (', '.join(found) for found in (saved.about['devices'], devices()))
    print(f'checkpoint {step} is of {before}: on {now} the same batches follow, but sums differ in the last bits')
  wanted = template.present
  integrity.check_like(saved.digests, integrity.kinds(wanted), str(path))
  places = jax.tree.broadcast(shardings, template).present
  put = lambda key, like, place: jax.make_array_from_callback(
    like.shape, place, saved.state[trees.name(key)].__getitem__
  )
  return TrainState(**jax.tree_util.tree_map_with_path(put, wanted, places)), saved.progress
