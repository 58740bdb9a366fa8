"""The optimiser: one optax ``tx`` and its learning-rate schedule."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax

from jaxres import trees
from jaxres.errors import InputError, nearest


def make(
  params: Any,
  total_steps: int,
  steps_per_epoch: float,
  /,
  name: Literal['sgd', 'nesterov', 'adamw'] = 'sgd',
  *,
  lr: float = 0.1,
  momentum: float = 0.9,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 5e-4,
  no_decay: tuple[str, ...] = ('.*/(scale|bias)',),
  schedule: Literal['cosine', 'step', 'constant'] = 'cosine',
  warmup_epochs: float = 0.0,
  milestones: tuple[float | int, ...] = (),
  gamma: float = 0.1,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Return the optimiser and its learning rate as a function of the step.

  Args:
    params: the parameters, or their shapes; only names are read.
    total_steps: of the whole training.
    steps_per_epoch: may be fractional.
    name: ``'sgd'`` (with momentum), ``'nesterov'`` or ``'adamw'``.
    lr: the highest learning rate.
    momentum: of SGD.
    b1: decay of AdamW's first moment.
    b2: decay of AdamW's second moment.
    eps: AdamW's epsilon.
    weight_decay: for SGD added to the gradient, as torch does; for AdamW decoupled (Loshchilov & Hutter 2019).
    no_decay: regular expressions of the parameters that do not decay: BatchNorm and biases unless told otherwise.
    schedule: ``'cosine'`` to zero, ``'step'`` (times ``gamma`` at each milestone) or ``'constant'``.
    warmup_epochs: the rate rises linearly from 0 over this many epochs; the schedule starts behind it.
    milestones: epochs of the ``'step'`` schedule, counted from the start of the training.
    gamma: factor of the ``'step'`` schedule.

  Raises:
    InputError: a name is unknown, a value is out of range, or a pattern of ``no_decay`` matches nothing.
  """
  _check(lr=lr, weight_decay=weight_decay, warmup_epochs=warmup_epochs, gamma=gamma, eps=eps)
  _check_below_one(momentum=momentum, b1=b1, b2=b2)
  warmup_steps = round(warmup_epochs * steps_per_epoch)
  if warmup_steps and warmup_steps >= total_steps:
    raise InputError(f'optim.warmup_epochs: {warmup_epochs} is not less than the whole training')
  steps = [round(epoch * steps_per_epoch) for epoch in milestones]
  rate = make_schedule(schedule, lr, total_steps, warmup_steps, steps, gamma)
  decays = _negate(trees.match(params, no_decay, 'optim.no_decay'))
  decay = optax.add_decayed_weights(weight_decay, decays)
  optimizers = {
    'sgd': lambda: optax.chain(decay, optax.sgd(rate, momentum)),
    'nesterov': lambda: optax.chain(decay, optax.sgd(rate, momentum, nesterov=True)),
    'adamw': lambda: optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=decays),
  }
  if name not in optimizers:
    raise InputError(f'optim.name: unknown optimiser {name!r}{nearest(name, optimizers)}')
  return optimizers[name](), rate


def make_schedule(
  name: str, lr: float, total_steps: int, warmup_steps: int, milestones: Sequence[int], gamma: float
) -> optax.Schedule:
  """Return the learning rate as a function of the step, counted from 0.

  With ``w`` warm-up steps of ``T``: ``lr * s / w`` for ``s < w``; then for the cosine
  ``lr * (1 + cos(pi * (s - w) / (T - w))) / 2`` (Loshchilov & Hutter 2017), for the steps ``lr * gamma ** k`` with
  ``k`` milestones at or before ``s``, or ``lr``.

  Raises:
    InputError: ``name`` is unknown, or milestones are missing, not rising or not given for ``'step'`` alone.
  """
  if (name == 'step') != bool(milestones):
    raise InputError("optim.milestones: give the epochs of optim.schedule='step', and of no other schedule")
  if sorted(set(milestones)) != list(milestones):
    raise InputError(f'optim.milestones: expected rising epochs, found steps {tuple(milestones)}')
  schedules = {
    'cosine': lambda: optax.cosine_decay_schedule(lr, max(1, total_steps - warmup_steps)),
    'step': lambda: optax.piecewise_constant_schedule(lr, {m - warmup_steps: gamma for m in milestones}),
    'constant': lambda: optax.constant_schedule(lr),
  }
  if name not in schedules:
    raise InputError(f'optim.schedule: unknown schedule {name!r}{nearest(name, schedules)}')
  if not warmup_steps:
    return schedules[name]()
  warmup = optax.linear_schedule(0.0, lr, warmup_steps)
  return optax.join_schedules([warmup, schedules[name]()], [warmup_steps])


def _check(**values: float) -> None:
  for name, value in values.items():
    if not 0.0 <= value < float('inf'):
      raise InputError(f'optim.{name}: expected 0 or more, found {value}')


def _check_below_one(**values: float) -> None:
  for name, value in values.items():
    if not 0.0 <= value < 1.0:
      raise InputError(f'optim.{name}: expected a value in [0, 1), found {value}')


def _negate(mask: Any) -> Any:
  return jax.tree.map(lambda m: not m, mask)
