"""Checkpoints by Orbax: the state, and beside it its digests, the progress of the run and what it was made by."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxres import config as config_lib
from jaxres import files, trees
from jaxres.checkpoint import digests as digests_lib
from jaxres.checkpoint import moves, reader
from jaxres.checkpoint import steps as steps_lib
from jaxres.checkpoint.about import describe
from jaxres.checkpoint.disk import check_space, explain_disk_errors, silence_threads
from jaxres.checkpoint.manager import Manager, check_path
from jaxres.errors import InputError, check_range, print_status, printable
from jaxres.runtime import distributed
from jaxres.runtime.environment import describe_devices
from jaxres.state import TrainState

DELETED = 'deleted'  # where a checkpoint goes before it is deleted: a half deleted one would look like a damaged one


@contextlib.contextmanager
def open_manager(directory: str | pathlib.Path, /, *, keep_latest: int = 1, keep_best: int = 1) -> Iterator[Manager]:
  """Open the checkpoints in ``directory``; leaving the context waits until every save is committed and read again.

  Each checkpoint is read and compared with its digests first. A damaged one is renamed to ``<step>.bad``, with a line
  that says what is wrong with it, and never deleted: the run goes on from the newest intact one.

  Args:
    directory: made where it is missing.
    keep_latest: keep this many of the newest checkpoints.
    keep_best: keep also this many with the best of what the task monitors, where there is a validation split.

  Raises:
    InputError: a number or the path cannot be used, none of several checkpoints is intact, or the disk is full.
  """
  check(keep_latest=keep_latest, keep_best=keep_best)
  directory = pathlib.Path(directory).absolute()
  directory = directory.resolve() if '..' in directory.parts else directory  # which TensorStore refuses
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
  with silence_threads(), contextlib.ExitStack() as stack:
    with explain_disk_errors(directory):
      manager = stack.enter_context(Manager(directory, options))
    yield manager
    finish(manager)


def check(*, keep_latest: int, keep_best: int) -> None:
  """Raise InputError where ``open_manager`` would."""
  config_lib.check_types('checkpoint', locals())
  check_range('checkpoint.keep_latest', keep_latest, low=1)
  check_range('checkpoint.keep_best', keep_best, low=0)


def put_damaged_aside(directory: pathlib.Path) -> None:
  """Rename the checkpoints in ``directory`` that are not what was saved, and say why.

  Raises:
    InputError: there are checkpoints, and none is intact; nothing is renamed then.
  """
  _put_odd_aside(directory)
  steps = steps_lib.list_steps(directory)
  _put_descriptions_aside(directory, steps)
  damaged = {step: reason for step in steps if (reason := _damage(directory / str(step)))}
  if steps and len(damaged) == len(steps):
    reason = f'step {steps[-1]}: {damaged[steps[-1]]}'
    raise InputError(
      directory, f'none of {len(steps)} checkpoints is intact: {reason}', fix='move them away to start over'
    )
  for step, reason in damaged.items():
    if distributed.is_main_process():
      aside = steps_lib.put_aside(directory / str(step))
      print_status(f'checkpoint {step} is damaged: {reason}; it is now {aside}')
  if damaged:
    distributed.barrier('damaged checkpoints are put aside')


def _put_odd_aside(directory: pathlib.Path) -> None:
  """Rename what reads like a step and is no checkpoint, such as a file: it would be in the way of a save."""
  odd = steps_lib.list_unknown(directory)
  for name in odd if distributed.is_main_process() else ():
    aside = steps_lib.put_aside(directory / name)
    print_status(f'{directory / name} is no checkpoint; it is now {aside}')
  if odd:
    distributed.barrier('what is no checkpoint is put aside')


def _put_descriptions_aside(directory: pathlib.Path, steps: Sequence[int]) -> None:
  """Rename what Orbax notes of a checkpoint where that is no JSON: it would wait for a pipe, or end in a traceback.

  Nothing of it is needed where digests say what the checkpoint holds.
  """
  for step in steps if distributed.is_main_process() else ():
    path = directory / str(step) / reader.DESCRIPTION
    if not (path.parent / 'digests').exists():  # an older jaxres saved it, and what is noted is needed
      continue
    try:
      files.read_json(path, finite=False, fix='')
    except files.DamagedError as error:
      print_status(f'{error}; it is not needed, and is now {steps_lib.put_aside(path)}')
  distributed.barrier('descriptions are put aside')


def _damage(path: pathlib.Path) -> str | None:
  """Return what is wrong with a checkpoint; where one of several processes finds anything, so do all."""
  damage = reader.find_damage(path)
  return damage or ('another process cannot read it' if distributed.any_process(damage is not None) else None)


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
    manager: of ``open_manager``.
    state: may be donated as soon as this returns.
    progress: JSON; what else a resumed run must know.
    scores: one number by its name, such as ``val/top1``; larger is better, and it is negated where less of it is; empty
      where none was measured.
    config: of the run, to be kept beside the state.
    commit: return when it is on the disk and was read again.

  Raises:
    InputError: the state has a NaN or an infinity, there is no room for it, or the save before it cannot be read; what
      was saved before stays.
  """
  step, digests, size = int(state.step), {}, 0
  for name, array in digests_lib.leaves(state.saved_fields):
    if not digests_lib.is_finite(array):
      raise InputError(f'step {step}', f'the state is not saved: {name} is not finite', fix='lower optim.lr')
    digests[name], size = digests_lib.leaf_digest(array), size + array.nbytes
  finish(manager)  # which raises what went wrong with the save before
  check_space(manager.place, size, step)
  metrics = dict(scores) | {'step': step}
  content = {'progress': dict(progress), 'metrics': metrics, 'about': describe(config or {}, step, manager.data)}
  known = {'state': digests} | {name: digests_lib.json_digest(value) for name, value in content.items()}
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state.saved_fields),
    progress=ocp.args.JsonSave(content['progress']),
    about=ocp.args.JsonSave(content['about']),
    digests=ocp.args.JsonSave(known),
  )
  with explain_disk_errors(manager.place):
    _move_replaced(manager, step)
    manager.save(step, args=items, metrics=metrics)
  if distributed.is_main_process():
    manager.read_back(step, known)
  if commit:
    finish(manager)


def finish(manager: Manager) -> None:
  """Wait until what is being saved is on the disk and was read again, and delete what made way for it.

  Raises:
    InputError: it is not what was to be saved; it is put aside, and what made way for it is there again.
  """
  saving, manager.saving = manager.saving, None
  try:
    with explain_disk_errors(manager.place):
      manager.wait_until_finished()
  finally:
    if saving:
      saving.over.set()
  reason = saving and saving.difference.result()
  if saving and reason:
    aside = steps_lib.put_aside(saving.path)
    _restore_replaced(manager.place)
    kept = ', '.join(map(str, steps_lib.list_steps(manager.place))) or 'none'
    problem = f'it was written, and is not what was to be saved: {reason}; it is now {aside}'
    raise InputError(
      saving.path, f'{problem}; saved are the steps: {kept}', fix='look at the disk, or use another --workdir'
    )
  if distributed.is_main_process():
    _clear(manager)


def _clear(manager: Manager) -> None:
  """Delete what made way for a save, and what Orbax put away; what cannot be is reported once, and left."""
  trash = manager.place / DELETED
  put_away = [trash / str(step) for step in steps_lib.list_steps(trash)]
  for old in (*manager.place.glob(f'*{steps_lib.REPLACED}'), *put_away):
    moves.throw(old, trash)  # half deleted it must not look like a checkpoint
  for old in trash.glob('*'):
    reason = None if old in manager.undeleted else moves.delete(old)
    if reason:
      manager.undeleted.add(old)
      print_status(f'{old}: cannot be deleted: {reason}; nothing needs it, and the next run tries again')
  with contextlib.suppress(OSError):  # it is not empty, or not there
    trash.rmdir()


def _move_replaced(manager: Manager, step: int) -> None:
  """Rename the checkpoint of ``step``, where there is one, until the new one of that step is committed."""
  if step in manager.all_steps():
    if distributed.is_main_process():
      old = manager.place / str(step)
      moves.rename(old, old.with_name(f'{step}{steps_lib.REPLACED}'))
    distributed.barrier('a checkpoint makes way')
    manager.reload()


def _restore_order(directory: pathlib.Path) -> None:
  """Take back what a save that was cut short, or cannot be read, had moved away, and delete what it made useless."""
  if distributed.is_main_process():
    _restore_replaced(directory)
    moves.delete(directory / DELETED)  # or a part of it: the rest is tried again behind the next save
  distributed.barrier('checkpoints are taken back')


def _restore_replaced(directory: pathlib.Path) -> None:
  """Take checkpoints back that made way for one that was never committed, or is damaged."""
  for old in directory.glob(f'*{steps_lib.REPLACED}'):
    new = old.with_name(old.name.removesuffix(steps_lib.REPLACED))
    if new.exists() and not reader.find_damage(new):
      moves.throw(old, directory / DELETED)
      continue
    if new.exists():
      steps_lib.put_aside(new)
    moves.rename(old, new)
  steps, deleted = steps_lib.list_steps(directory), steps_lib.list_steps(directory / DELETED)
  if deleted and (not steps or reader.find_damage(directory / str(steps[-1]))):
    for step in set(deleted) - set(steps):
      if not reader.find_damage(directory / DELETED / str(step)):  # a kill may have left one half deleted
        moves.rename(directory / DELETED / str(step), directory / str(step))


def rank(metrics: Mapping[str, float]) -> tuple[float, float]:
  """Return what the best checkpoint has most of: of equals it is the earliest, and without validation the latest."""
  score = next((value for name, value in metrics.items() if name != 'step'), None)
  return (-math.inf, metrics['step']) if score is None else (score, -metrics['step'])


def restore(
  manager: Manager,
  template: TrainState,
  shardings: Any,
  step: int | None = None,
) -> tuple[TrainState, dict[str, Any]] | None:
  """Return the state and the progress saved at ``step``, the latest where it is None; None where nothing is saved.

  Args:
    manager: of ``open_manager``.
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
    saved = reader.read(path)
  except reader.DamagedError as error:
    raise InputError(path, f'damaged: {error}') from None
  if not saved.verified and distributed.is_main_process():
    print_status(f'checkpoint {step}: an older jaxres saved it, without digests: it cannot be verified')
  if saved.about.get('devices') not in (None, describe_devices()) and distributed.is_main_process():
    before, now = (', '.join(each) for each in (saved.about['devices'], describe_devices()))
    line = f'checkpoint {step} is of {before}: on {now} the same batches follow, but sums differ in the last bits'
    print(printable(line))
  wanted = template.saved_fields
  digests_lib.check_like(saved.digests, digests_lib.kinds(wanted), str(path))
  everywhere = jax.tree.broadcast(shardings, template)
  put = lambda key, like, place: jax.make_array_from_callback(
    like.shape, place, saved.state[trees.name(key)].__getitem__
  )
  state = TrainState(**jax.tree_util.tree_map_with_path(put, wanted, everywhere.saved_fields))
  return dataclasses.replace(state, halted=jax.device_put(state.halted, everywhere.halted)), saved.progress
