"""Learning-rate schedules."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxres.errors import InputError, check_word

# torch's OneCycleLR: the share of the training that the rate rises, where it starts and where it ends.
ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1 / 25e4


def step_at(epochs: float, steps_per_epoch: float, total_steps: int) -> int:
  """Return the step that an epoch starts with; or the nearest end of the training; of NaN 0.

  Args:
    epochs: from the start of the training; may be fractional.
    steps_per_epoch: may be fractional.
    total_steps: of the training.
  """
  return round(min(total_steps, max(0, epochs * steps_per_epoch)))


def make_schedule(
  name: str,
  lr: float,
  total_steps: int,
  warmup_steps: int,
  milestones: Sequence[int],
  gamma: float,
  steps_per_epoch: float,
  power: float,
) -> optax.Schedule:
  """Return the learning rate as a function of the step, counted from 0.

  With ``w`` warm-up steps of ``T``, ``E`` an epoch: ``lr * s / w`` for ``s < w``; then

  - cosine: ``lr * (1 + cos(pi * x)) / 2`` with ``x = (s - w) / (T - w)`` (Loshchilov & Hutter 2017);
  - polynomial: ``lr * (1 - x) ** power``;
  - exponential: ``lr * gamma ** ((s - w) / E)``;
  - step: ``lr * gamma ** k`` with ``k`` milestones at or before ``s``;
  - constant: ``lr``.

  One-cycle has its own warm-up, see ``onecycle``.

  Raises:
    InputError: ``name`` is unknown; milestones are missing, not rising or not given for ``'step'`` alone; or
      ``gamma`` leaves nothing of the rate by the end.
  """
  if (name == 'step') != bool(milestones):
    raise InputError('optim.milestones', "give the epochs of optim.schedule='step', and of no other schedule")
  if sorted(set(milestones)) != list(milestones):
    raise InputError('optim.milestones', expected='rising epochs', found=f'those of steps {tuple(milestones)}')
  left = max(1, total_steps - warmup_steps)
  epochs_left = left / steps_per_epoch
  if name == 'exponential' and gamma < (min_gamma := 1e-9 ** (1 / epochs_left)):
    fix = f'expected at least {min_gamma:.2g} for {epochs_left:.4g} epochs, such as 0.95'
    raise InputError('optim.gamma', f'{gamma} each epoch leaves less than 1e-9 of optim.lr', fix=fix)
  schedules = {
    'cosine': lambda: optax.cosine_decay_schedule(lr, left),
    'onecycle': lambda: onecycle(lr, total_steps, warmup_steps or ONECYCLE_RISE * total_steps),
    'exponential': lambda: optax.exponential_decay(lr, steps_per_epoch, gamma),
    'polynomial': lambda: lambda step: lr * (1.0 - jnp.clip(step / left, 0.0, 1.0)) ** power,
    'step': lambda: optax.piecewise_constant_schedule(lr, {m - warmup_steps: gamma for m in milestones}),
    'constant': lambda: optax.constant_schedule(lr),
  }
  check_word('optim.schedule', name, schedules, 'schedule')
  if not warmup_steps or name == 'onecycle':
    return schedules[name]()
  warmup = optax.linear_schedule(0.0, lr, warmup_steps)
  return optax.join_schedules([warmup, schedules[name]()], [warmup_steps])


def onecycle(lr: float, total_steps: int, rise: float) -> optax.Schedule:
  """Return the one-cycle learning rate (Smith & Topin 2018) of torch's ``OneCycleLR``: two half cosines.

  It rises from ``lr / 25`` at step 0 to ``lr`` at step ``rise - 1``, and falls to ``lr / 250,000`` at the last step.
  The momentum stays as it is.
  """
  peak, last = max(rise - 1, 0.0), total_steps - 1
  between = lambda a, b, x: b + (a - b) * (1 + jnp.cos(jnp.pi * jnp.clip(x, 0.0, 1.0))) / 2

  def schedule(step: Any) -> Any:
    up = between(lr * ONECYCLE_START, lr, step / max(peak, 1e-6))
    down = between(lr, lr * ONECYCLE_END, (step - peak) / max(last - peak, 1e-6))
    return jnp.where(step < peak, up, down)

  return schedule
