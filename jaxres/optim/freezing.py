"""Frozen parameters: which, until when, and what that means for the gradient, the optimizer and BatchNorm."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jaxres import trees
from jaxres.errors import InputError
from jaxres.models import ResNet
from jaxres.optim.schedules import step_at


class UnfreezePhase(NamedTuple):
  """A part of the training with the same parameters frozen."""

  start: int  # its first step, counted from 0
  frozen: Any  # a tree of bools like the parameters
  norms: tuple[str, ...]  # the BatchNorms that are frozen, such as stem/bn


def unfreeze_steps(
  params: Any,
  frozen: Sequence[str],
  unfreeze: Sequence[tuple[str, float]],
  total_steps: int,
  steps_per_epoch: float,
) -> Any:
  """Return the step from which each parameter is trained: 0 where it is not frozen, ``inf`` for never.

  Args:
    params: the parameters, or their shapes; only names are read.
    frozen: regular expressions of full names.
    unfreeze: pairs of a regular expression and an epoch; the first that matches a frozen parameter counts.
    total_steps: of the training.
    steps_per_epoch: may be fractional.

  Raises:
    InputError: a pattern matches nothing (of ``unfreeze``: nothing that is frozen), an epoch is outside the training,
      or nothing would ever be trained.
  """
  frozen_mask = trees.match(params, frozen, 'optim.frozen')
  steps = jax.tree.map(lambda frozen: math.inf if frozen else 0, frozen_mask)
  for pattern, epoch in reversed(unfreeze):  # the first match wins: it is set last
    hits = jax.tree.map(lambda a, b: a and b, frozen_mask, trees.match(params, [pattern], 'optim.unfreeze'))
    if not any(jax.tree.leaves(hits)):
      raise InputError('optim.unfreeze', f'{pattern!r} matches nothing that optim.frozen freezes')
    step = step_at(epoch, steps_per_epoch, total_steps) if epoch >= 0 else -1
    if not 0 <= step < total_steps:
      epochs = total_steps / steps_per_epoch
      raise InputError('optim.unfreeze', expected=f'epochs from 0 to less than {epochs:.4g}', found=epoch)
    steps = jax.tree.map(lambda old, hit, new=step: new if hit else old, steps, hits)
  if min(jax.tree.leaves(steps)) == math.inf:
    raise InputError(
      'optim.frozen', 'all parameters are frozen forever', fix='leave some, such as the head, to be trained'
    )
  return steps


def unfreeze_phases(thaw_steps: Any, batch_stats: Any) -> list[UnfreezePhase]:
  """Return the phases of a training, the first of which starts at step 0.

  A BatchNorm is frozen as long as all its parameters are.

  Args:
    thaw_steps: of ``unfreeze_steps``.
    batch_stats: of the model, or their shapes.
  """
  steps = dict(zip(trees.leaf_names(thaw_steps), jax.tree.leaves(thaw_steps), strict=True))
  norms = {name.rpartition('/')[0] for name in trees.leaf_names(batch_stats)}
  ends = {norm: min((s for name, s in steps.items() if name.startswith(f'{norm}/')), default=0) for norm in norms}
  return [
    UnfreezePhase(
      start,
      jax.tree.map(lambda step, start=start: step > start, thaw_steps),
      tuple(sorted(norm for norm, step in ends.items() if step > start)),
    )
    for start in sorted({0, *steps.values()} - {math.inf})
  ]


def phase_index(phases: Sequence[UnfreezePhase], step: int) -> int:
  """Return the place of the stage of the last step that was taken by the time there are ``step`` of them."""
  return max(i for i, phase in enumerate(phases) if phase.start < step or i == 0)


def freeze(model: ResNet, phase: UnfreezePhase) -> ResNet:
  """Return ``model`` with the BatchNorms of ``phase`` frozen."""
  return model.clone(frozen_norms=phase.norms) if phase.norms else model


def stop_frozen_gradients(params: Any, frozen: Any) -> Any:
  """Return ``params`` with no gradient for those that are ``frozen``, a tree of bools.

  What lies below all that is trained is then not differentiated at all.
  """
  return jax.tree.map(lambda x, is_frozen: jax.lax.stop_gradient(x) if is_frozen else x, params, frozen)


def partition_by_thaw(
  thaw_steps: Any, make: Callable[[int], optax.GradientTransformation]
) -> optax.GradientTransformation:
  """Return ``make(0)``, but for frozen parameters nothing, and from step ``s`` on, where they thaw, ``make(s)``.

  A parameter that is frozen forever gets no update and has no state; one that thaws starts with a fresh state.

  Args:
    thaw_steps: of ``unfreeze_steps``.
    make: a step to the transformation that starts there, and counts its steps from 0.
  """
  starts = set(jax.tree.leaves(thaw_steps))
  if starts == {0}:
    return make(0)  # alone where it can be: its state is what older checkpoints hold

  def transform(start: float) -> optax.GradientTransformation:
    if start == math.inf:
      return optax.set_to_zero()
    inner = make(int(start))
    return optax.conditionally_mask(inner, lambda step: step >= start) if start else inner

  return optax.partition(
    {f'from_{start}': transform(start) for start in starts}, jax.tree.map('from_{}'.format, thaw_steps)
  )
