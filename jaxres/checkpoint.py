"""Checkpoints by Orbax: the state, and beside it the progress that a resumed run must know."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxres.errors import InputError
from jaxres.state import TrainState

BEST_METRIC = 'val/top1'


@contextlib.contextmanager
def open(
  directory: str | pathlib.Path, /, *, keep_latest: int = 1, keep_best: int = 1
) -> Iterator[ocp.CheckpointManager]:
  """Open the checkpoints in ``directory``; leaving the context waits until every save is committed.

  Args:
    directory: made where it is missing.
    keep_latest: keep this many of the newest checkpoints.
    keep_best: keep also this many with the best validation top-1, where there is a validation split.

  Raises:
    InputError: a number is out of range.
  """
  check(keep_latest=keep_latest, keep_best=keep_best)
  best = BestN(get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False)
  options = ocp.CheckpointManagerOptions(
    best_fn=rank,  # or the metrics are not stored, and a manager that is opened again knows of no best
    preservation_policy=AnyPreservationPolicy([LatestN(keep_latest), best]),
    cleanup_tmp_directories=True,
  )
  with ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options) as manager:
    yield manager


def check(*, keep_latest: int, keep_best: int) -> None:
  """Raise InputError where ``open`` would."""
  if keep_latest < 1 or keep_best < 0:
    raise InputError(f'checkpoint: expected keep_latest >= 1, keep_best >= 0; found {keep_latest}, {keep_best}')


def save(
  manager: ocp.CheckpointManager,
  state: TrainState,
  progress: Mapping[str, Any],
  scores: Mapping[str, float],
) -> None:
  """Save ``state`` under its step, in the background.

  Args:
    manager: of ``open``.
    state: may be donated as soon as this returns.
    progress: JSON; what else a resumed run must know.
    scores: metrics of this step; ``val/top1`` among them makes it a candidate for the best.
  """
  items = ocp.args.Composite(state=ocp.args.StandardSave(state.present), progress=ocp.args.JsonSave(dict(progress)))
  step = int(state.step)
  kept = {name: scores[name] for name in (BEST_METRIC,) if name in scores}
  manager.save(step, args=items, metrics=kept | {'step': step})


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
  """
  step = manager.latest_step() if step is None else step
  if step is None:
    return None
  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  abstract = jax.tree.map(place, template, jax.tree.broadcast(shardings, template)).present
  items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
  restored = manager.restore(step, args=items)
  return TrainState(**restored['state']), restored['progress']
