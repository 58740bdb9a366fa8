"""Frozen parameters: which, until when, and what that means for the gradient, the optimiser and BatchNorm."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jaxres import trees
from jaxres.errors import InputError
from jaxres.models import ResNet


class Stage(NamedTuple):
  """A part of the training with the same parameters frozen."""

  begin: int  # its first step, counted from 0
  frozen: Any  # a tree of bools like the parameters
  norms: tuple[str, ...]  # the BatchNorms that are frozen, such as stem/bn


def until(
  params: Any,
  frozen: Sequence[str],
  unfreeze: Sequence[tuple[str, float]],
  total_steps: int,
  steps_per_epoch: float,
) -> Any:
  """Return the step at which each parameter begins to be trained: 0 where it is not frozen, ``inf`` for never.

  Args:
    params: the parameters, or their shapes; only names are read.
    frozen: regular expressions of whole names.
    unfreeze: pairs of a regular expression and an epoch; the first that matches a frozen parameter counts.
    total_steps: of the training.
    steps_per_epoch: may be fractional.

  Raises:
    InputError: a pattern matches nothing (of ``unfreeze``: nothing that is frozen), an epoch is outside the training,
      or nothing would ever be trained.
  """
  held = trees.match(params, frozen, 'optim.frozen')
  found = jax.tree.map(lambda frozen: math.inf if frozen else 0, held)
  for pattern, epoch in reversed(unfreeze):  # the first match wins: it is set last
    hits = jax.tree.map(lambda a, b: a and b, held, trees.match(params, [pattern], 'optim.unfreeze'))
    if not any(jax.tree.leaves(hits)):
      raise InputError(f'optim.unfreeze: {pattern!r} matches nothing that optim.frozen freezes')
    step = round(epoch * steps_per_epoch) if 0 <= epoch < math.inf else -1
    if not 0 <= step < total_steps:
      epochs = total_steps / steps_per_epoch
      raise InputError(f'optim.unfreeze: expected epochs from 0 to less than {epochs:.4g}, found {epoch}')
    found = jax.tree.map(lambda old, hit, new=step: new if hit else old, found, hits)
  if min(jax.tree.leaves(found)) == math.inf:
    raise InputError('optim.frozen: all parameters are frozen for ever; leave some, such as the head, to be trained')
  return found


def stages(until: Any, batch_stats: Any) -> list[Stage]:
  """Return the stages of a training, the first of which begins at step 0.

  A BatchNorm is frozen as long as all its parameters are.

  Args:
    until: of ``until``.
    batch_stats: of the model, or their shapes.
  """
  steps = dict(zip(trees.names(until), jax.tree.leaves(until), strict=True))
  norms = {name.rpartition('/')[0] for name in trees.names(batch_stats)}
  ends = {norm: min((s for name, s in steps.items() if name.startswith(f'{norm}/')), default=0) for norm in norms}
  return [
    Stage(
      begin,
      jax.tree.map(lambda step, begin=begin: step > begin, until),
      tuple(sorted(norm for norm, step in ends.items() if step > begin)),
    )
    for begin in sorted({0, *steps.values()} - {math.inf})
  ]


def stage_before(stages: Sequence[Stage], step: int) -> int:
  """Return the place of the stage of the last step that was taken by the time there are ``step`` of them."""
  return max(i for i, stage in enumerate(stages) if stage.begin < step or i == 0)


def freeze(model: ResNet, stage: Stage) -> ResNet:
  """Return ``model`` with the BatchNorms of ``stage`` frozen."""
  return model.clone(frozen_norms=stage.norms) if stage.norms else model


def pinned(params: Any, frozen: Any) -> Any:
  """Return ``params`` with no gradient for those that are ``frozen``, a tree of bools.

  What lies below all that is trained is then not differentiated at all.
  """
  return jax.tree.map(lambda x, held: jax.lax.stop_gradient(x) if held else x, params, frozen)


def held(until: Any, make: Callable[[int], optax.GradientTransformation]) -> optax.GradientTransformation:
  """Return ``make(0)``, but for frozen parameters nothing, and from step ``s`` on, where they thaw, ``make(s)``.

  A parameter that is frozen for ever gets no update and has no state; one that thaws begins with a fresh state.

  Args:
    until: of ``until``.
    make: a step to the transformation that begins there, and counts its steps from 0.
  """
  begins = set(jax.tree.leaves(until))
  if begins == {0}:
    return make(0)  # alone where it can be: its state is what older checkpoints hold

  def transform(begin: float) -> optax.GradientTransformation:
    if begin == math.inf:
      return optax.set_to_zero()
    inner = make(int(begin))
    return optax.conditionally_mask(inner, lambda step: step >= begin) if begin else inner

  return optax.partition({f'from_{begin}': transform(begin) for begin in begins}, jax.tree.map('from_{}'.format, until))
