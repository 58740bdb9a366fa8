"""Checkpoints by Orbax: the state, and beside it its digests, the progress of the run and what it was made by."""

import concurrent.futures
import contextlib
import errno
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxres import __version__, distributed, integrity, trees
from jaxres import config as config_lib
from jaxres.errors import InputError, printable
from jaxres.state import TrainState

BEST_METRIC = 'val/top1'
DELETED = 'deleted'  # where a checkpoint goes before it is deleted: a half deleted one would look like a damaged one
MARGIN_BYTES = 1 << 20  # of a save, beside the arrays: metadata, digests, the run's other files
AGAIN = 'make room and give the same command again'
AS_BEFORE = 'make it writable, and the same command continues'
COMMIT_SECONDS = 0.05  # between looks at whether a save is committed, which is then read
# What may differ between two calls on one workdir: how long, what is kept or shown, where the data lies.
MAY_CHANGE = {
  'train.epochs', 'train.patience', 'train.scan_steps', 'train.log_every_steps', 'train.eval_batch_size',
  'checkpoint.keep_latest', 'checkpoint.keep_best', 'data.data_dir', 'data.path', 'data.download',
  'tta.flip', 'tta.crop', 'tta.pad', 'train.shard_optimizer',
  'data.workers', 'data.max_bad', 'train.max_rollbacks', 'train.spike_factor',
}  # fmt: skip
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@epath.register_path_cls
class Directory(type(epath.Path('/'))):  # type: ignore[misc]  # etils does not export it
  """A path that Orbax takes for what it is: without patterns (``[``), and local even where it begins with ``/gs/``."""

  def glob(self, pattern: str) -> Iterator['Directory']:
    """Yield what matches ``pattern`` in this directory, whose own name is none; Orbax looks for its parts so."""
    yield from map(type(self), pathlib.Path(os.fspath(self)).glob(pattern))

  @property
  def _uri_scheme(self) -> None:
    return None


class Saving(NamedTuple):
  """A save that is under way."""

  path: pathlib.Path
  over: threading.Event  # set when Orbax has done all it will
  difference: concurrent.futures.Future[str | None]  # of what lies on the disk from what was to be saved


class Manager(ocp.CheckpointManager):
  """Orbax's manager; what it has saved counts when it was read again, in a thread of its own, and compared."""

  saving: Saving | None = None  # of the process that leads

  def __init__(self, directory: pathlib.Path, options: ocp.CheckpointManagerOptions):
    """Open the checkpoints in ``directory``."""
    super().__init__(Directory(directory), options=options)
    self.place = directory
    self._reader = concurrent.futures.ThreadPoolExecutor(1, 'read back')

  def read_back(self, step: int, known: Mapping[str, Any]) -> None:
    """Read the checkpoint of ``step`` when it is committed, and compare it with the digests that it should have."""
    path, over = self.place / str(step), threading.Event()
    self.saving = Saving(path, over, self._reader.submit(_difference, path, over, known))

  def close(self) -> None:
    """Wait for what is being saved."""
    try:
      with _disk_errors_explained(self.place):
        super().close()
    finally:
      if self.saving:
        self.saving.over.set()
      self._reader.shutdown()


def _difference(path: pathlib.Path, over: threading.Event, known: Mapping[str, Any]) -> str | None:
  """Return how a checkpoint differs from what was to be saved, when it is there; None also where it is never."""
  while not path.exists() and not over.wait(COMMIT_SECONDS):
    pass
  return integrity.difference(path, known) if path.exists() else None


@contextlib.contextmanager
def open(directory: str | pathlib.Path, /, *, keep_latest: int = 1, keep_best: int = 1) -> Iterator[Manager]:
  """Open the checkpoints in ``directory``; leaving the context waits until every save is committed and read again.

  Each checkpoint is read and compared with its digests first. A damaged one is renamed to ``<step>.bad``, with a line
  that says what is wrong with it, and never deleted: the run goes on from the newest that is whole.

  Args:
    directory: made where it is missing.
    keep_latest: keep this many of the newest checkpoints.
    keep_best: keep also this many with the best validation top-1, where there is a validation split.

  Raises:
    InputError: a number or the path cannot be used, no checkpoint of several is whole, or the disk is full.
  """
  check(keep_latest=keep_latest, keep_best=keep_best)
  directory = pathlib.Path(directory).absolute()
  check_path(directory)
  _restore_order(directory)
  put_damaged_aside(directory)
  best = BestN(get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False)
  options = ocp.CheckpointManagerOptions(
    best_fn=rank,  # or the metrics are not stored, and a manager that is opened again knows of no best
    preservation_policy=AnyPreservationPolicy([LatestN(keep_latest), best]),
    cleanup_tmp_directories=True,
    todelete_subdir=DELETED,
  )
  with _quiet_threads(), contextlib.ExitStack() as stack:
    with _disk_errors_explained(directory):
      manager = stack.enter_context(Manager(directory, options))
    yield manager
    _finish(manager)


def check(*, keep_latest: int, keep_best: int) -> None:
  """Raise InputError where ``open`` would."""
  config_lib.check_types('checkpoint', locals())
  if keep_latest < 1 or keep_best < 0:
    raise InputError(f'checkpoint: expected keep_latest >= 1, keep_best >= 0; found {keep_latest}, {keep_best}')


def check_path(directory: pathlib.Path) -> None:
  """Raise InputError where TensorStore would take the path of ``directory`` for another, or for none."""
  text = os.fspath(directory)
  reasons = {
    'it is not UTF-8': any('\ud800' <= letter <= '\udfff' for letter in text),
    "it has a backslash, which would be taken for '/'": '\\' in text,
    "it has a name that ends in 'gs:', which would be taken for a bucket": 'gs:/' in f'{text}/',
  }
  if reason := next((reason for reason, holds in reasons.items() if holds), None):
    shown = text.encode(errors='backslashreplace').decode()
    raise InputError(f'--workdir: {shown}: no checkpoint can be saved under this path: {reason}; use another --workdir')


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
      print(printable(f'checkpoint {step} is damaged: {reason}; it is now {aside}'), file=sys.stderr)
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
  return found or ('another process cannot read it' if distributed.any_says(found is not None) else None)


def save(
  manager: Manager,
  state: TrainState,
  progress: Mapping[str, Any],
  scores: Mapping[str, float],
  config: Mapping[str, Any] | None = None,
  *,
  commit: bool = False,
) -> None:
  """Save ``state`` under its step, in the background, when the save before it is committed and was read again.

  Args:
    manager: of ``open``.
    state: may be donated as soon as this returns.
    progress: JSON; what else a resumed run must know.
    scores: metrics of this step; ``val/top1`` among them makes it a candidate for the best.
    config: of the run, to be kept beside the state.
    commit: return when it is on the disk and was read again.

  Raises:
    InputError: the state has a NaN or an infinity, there is no room for it, or the save before it cannot be read; what
      was saved before stays.
  """
  step, digests, size = int(state.step), {}, 0
  for name, array in integrity.leaves(state.present):
    if not integrity.is_finite(array):
      raise InputError(f'the state at step {step} is not saved: {name} is not finite; lower optim.lr')
    digests[name], size = integrity.leaf_digest(array), size + array.nbytes
  _finish(manager)  # which raises what went wrong with the save before
  check_space(manager.place, size, step)
  metrics = {name: scores[name] for name in (BEST_METRIC,) if name in scores} | {'step': step}
  content = {'progress': dict(progress), 'metrics': metrics, 'about': describe(config or {}, step)}
  known = {'state': digests} | {name: integrity.json_digest(value) for name, value in content.items()}
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state.present),
    progress=ocp.args.JsonSave(content['progress']),
    about=ocp.args.JsonSave(content['about']),
    digests=ocp.args.JsonSave(known),
  )
  with _disk_errors_explained(manager.place):
    _make_way(manager, step)
    manager.save(step, args=items, metrics=metrics)
  if distributed.leads():
    manager.read_back(step, known)
  if commit:
    _finish(manager)


def _finish(manager: Manager) -> None:
  """Wait until what is being saved is on the disk and was read again, and delete what made way for it.

  Raises:
    InputError: it is not what was to be saved; it is put aside, and what made way for it is there again.
  """
  saving, manager.saving = manager.saving, None
  try:
    with _disk_errors_explained(manager.place):
      manager.wait_until_finished()
  finally:
    if saving:
      saving.over.set()
  reason = saving and saving.difference.result()
  if saving and reason:
    aside = integrity.put_aside(saving.path)
    _take_back(manager.place)
    kept = ', '.join(map(str, integrity.numbered(manager.place))) or 'none'
    found = f'it was written, and is not what was to be saved: {reason}; it is now {aside}'
    raise InputError(f'{saving.path}: {found}; saved are the steps: {kept}; look at the disk, or use another --workdir')
  if distributed.leads():
    for old in (*manager.place.glob(f'*{integrity.REPLACED}'), *manager.place.glob(DELETED)):
      shutil.rmtree(old)


def _make_way(manager: Manager, step: int) -> None:
  """Rename the checkpoint of ``step``, where there is one, until the new one of that step is committed."""
  if step in manager.all_steps():
    if distributed.leads():
      old = manager.place / str(step)
      os.rename(old, old.with_name(f'{step}{integrity.REPLACED}'))
    distributed.meet('a checkpoint makes way')
    manager.reload()


def _restore_order(directory: pathlib.Path) -> None:
  """Take back what a save that was cut short, or cannot be read, had moved away, and delete what it made useless."""
  if distributed.leads():
    _take_back(directory)
    shutil.rmtree(directory / DELETED, ignore_errors=True)
  distributed.meet('checkpoints are taken back')


def _take_back(directory: pathlib.Path) -> None:
  """Take checkpoints back that made way for one that was never committed, or is damaged."""
  for old in directory.glob(f'*{integrity.REPLACED}'):
    new = old.with_name(old.name.removesuffix(integrity.REPLACED))
    if new.exists() and not integrity.damage(new):
      shutil.rmtree(old)
      continue
    if new.exists():
      integrity.put_aside(new)
    os.rename(old, new)
  steps, deleted = integrity.numbered(directory), integrity.numbered(directory / DELETED)
  if deleted and (not steps or integrity.damage(directory / str(steps[-1]))):
    for step in set(deleted) - set(steps):
      if not integrity.damage(directory / DELETED / str(step)):  # a kill may have left one half deleted
        os.rename(directory / DELETED / str(step), directory / str(step))


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


def check_room(directory: pathlib.Path, template: TrainState) -> None:
  """Raise InputError where the disk of ``directory`` has no room for one checkpoint of a state like ``template``."""
  leaves = jax.tree.leaves(template.present)
  check_space(directory, sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves), None)


def check_space(directory: str | pathlib.Path, size: int, step: int | None) -> None:
  """Raise InputError where the disk of ``directory`` has no room for a state of ``size`` bytes."""
  free, needed = shutil.disk_usage(directory).free, size + MARGIN_BYTES
  if free < needed:
    what = 'a checkpoint of this run' if step is None else f'step {step}'
    found = f'{free / 1e6:,.1f} MB are free, and {what} needs {needed / 1e6:,.1f} MB'
    raise InputError(f'the disk is full: {directory}: {found}; what was saved before is untouched; {AGAIN}')


@contextlib.contextmanager
def _disk_errors_explained(directory: pathlib.Path) -> Iterator[None]:
  """Turn the errors of a disk that is full, or cannot be written, into an InputError, without what is half written."""
  try:
    yield
  except Exception as error:  # of Orbax and TensorStore: many kinds
    full, reason = _is_full_disk(error), _file_error(error)
    if isinstance(error, InputError) or not (full or reason):
      raise
    if distributed.leads():
      for partial in directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(partial, ignore_errors=True)
    kept = ', '.join(map(str, integrity.numbered(directory))) or 'none'
    found = f'the disk is full: {directory}' if full else f'cannot write {directory}: {reason}'
    raise InputError(f'{found}: saved are the steps: {kept}; {AGAIN if full else AS_BEFORE}') from error


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


def _file_error(error: BaseException | None) -> str | None:
  """Return why the system refused to write, of an error or of one that it was raised from; None for another error."""
  refused = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.ENAMETOOLONG)
  while error is not None:
    if isinstance(error, OSError) and error.errno in refused:
      return os.strerror(error.errno)
    if words := next((words for words in map(os.strerror, refused) if words in str(error)), None):
      return words
    error = error.__cause__ or error.__context__
  return None


def check_made_by(about: Mapping[str, Any], config: Mapping[str, Any] | None, path: pathlib.Path) -> None:
  """Raise InputError where the checkpoint in ``path`` is not of a run of ``config``.

  Args:
    about: what it was made by, as ``describe`` says; empty where it is not known.
    config: of the run that it lies in, of any version of jaxres; None where it is not known.
    path: of the checkpoint.
  """
  if not (about.get('config') and config):
    return
  if about.get('config_sha256') not in (None, integrity.json_digest(about['config'])):
    raise integrity.DamagedError(f'{path}: the config in it is not that of its digest')
  if changed := other_fields(about['config'], config):
    name, (old, new) = next(iter(changed.items()))
    found = f'{name} was {json.dumps(old)} there, and is {json.dumps(new)} in this run'
    raise InputError(f'{path}: of another run: {found}; move it away, or use the workdir that it is of')


def other_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Return the fields, as ``{'train.seed': (0, 1)}``, by which two configs cannot be of one run."""
  both = config_lib.complete(old), config_lib.complete(new)  # of an older jaxres: a new field is at its default
  changed = config_lib.differences(*both)
  return {name: values for name, values in changed.items() if name not in MAY_CHANGE}


def rank(metrics: Mapping[str, float]) -> tuple[float, float]:
  """Return what the best checkpoint has most of: of equals it is the earliest, and without validation the latest."""
  top1 = metrics.get(BEST_METRIC)
  return (-1.0, metrics['step']) if top1 is None else (top1, -metrics['step'])


def restore(
  manager: Manager,
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
  path = manager.place / str(step)
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
