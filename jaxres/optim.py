"""The optimiser: one optax ``tx`` and its learning-rate schedule."""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxres import config, freezing, trees
from jaxres.errors import InputError, nearest

# torch's OneCycleLR: the share of the training that the rate rises, where it starts and where it ends.
ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1 / 25e4


def make(
  params: Any,
  total_steps: int,
  steps_per_epoch: float,
  /,
  name: Literal['sgd', 'nesterov', 'adam', 'adamw', 'lamb', 'rmsprop'] = 'sgd',
  *,
  lr: float = 0.1,
  momentum: float = 0.9,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 5e-4,
  l1: float = 0.0,
  no_decay: tuple[str, ...] = ('.*/(scale|bias)',),
  clip_norm: float = 0.0,
  lr_mult: tuple[tuple[str, float], ...] = (),
  layer_decay: float = 1.0,
  frozen: tuple[str, ...] = (),
  unfreeze: tuple[tuple[str, float], ...] = (),
  schedule: Literal['cosine', 'onecycle', 'exponential', 'polynomial', 'step', 'constant'] = 'cosine',
  warmup_epochs: float = 0.0,
  milestones: tuple[float | int, ...] = (),
  gamma: float = 0.1,
  power: float = 1.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Return the optimiser and its learning rate as a function of the step.

  Args:
    params: the parameters, or their shapes; only names are read.
    total_steps: of the whole training.
    steps_per_epoch: may be fractional.
    name: ``'sgd'`` (with momentum), ``'nesterov'``, ``'adam'``, ``'adamw'``, ``'lamb'`` (You et al. 2019) or
      ``'rmsprop'`` (torch's: ``eps`` outside the square root).
    lr: the highest learning rate.
    momentum: of SGD, Nesterov and RMSProp.
    b1: decay of the first moment of Adam, AdamW and LAMB.
    b2: decay of the second moment of Adam, AdamW and LAMB; of RMSProp torch's ``alpha``, which is 0.99 there.
    eps: of Adam, AdamW, LAMB and RMSProp, added to the root of the second moment.
    weight_decay: for AdamW and LAMB decoupled (Loshchilov & Hutter 2019), for the others added to the gradient, as
      torch does.
    l1: strength of the penalty ``l1 * sum(|w|)``, over the parameters that decay. Its gradient is added before
      clipping, as if it were part of the loss; the loss that is shown leaves it out.
    no_decay: regular expressions of the parameters that do not decay: BatchNorm and biases unless told otherwise.
    clip_norm: the gradient is scaled down to this global norm where it is longer, before the weight decay, as by
      torch's ``clip_grad_norm_``; 0 does not clip.
    lr_mult: pairs of a regular expression and a factor of the learning rate; the first that matches the whole name
      of a parameter counts, such as ``(('stem/.*', 0.0), ('stage.*', 0.1))``.
    layer_decay: the learning rate is multiplied by this once for every block between a parameter and the head: 1
      time in the last block, most often in the stem.
    frozen: regular expressions of the parameters that stay as they are, whole names again, such as ``'stem/.*'``: no
      gradient, decay or momentum; a BatchNorm whose parameters are all frozen normalises by its running statistics,
      which stay as they are too. ``'(?!head/).*'`` is all but the head.
    unfreeze: pairs of a regular expression and the epoch from which on what it matches of ``frozen`` is trained; the
      first match counts, such as ``(('stage4/.*', 1.0), ('stage3/.*', 2.0))``. Its momentum begins there.
    schedule: ``'cosine'`` to zero, ``'onecycle'``, ``'exponential'`` (times ``gamma`` each epoch), ``'polynomial'``
      to zero, ``'step'`` (times ``gamma`` at each milestone) or ``'constant'``; ``make_schedule`` has the formulas.
    warmup_epochs: the rate rises linearly from 0 over this many epochs; the schedule starts behind it. Of
      ``'onecycle'`` it is the length of the rise, 30 % of the training where it is 0.
    milestones: epochs of the ``'step'`` schedule, counted from the start of the training.
    gamma: factor of the ``'step'`` and ``'exponential'`` schedules.
    power: of the ``'polynomial'`` schedule.

  Raises:
    InputError: a name is unknown, a value is out of range, or a pattern matches nothing.
  """
  config.check_types('optim', locals())
  _check(lr=lr, weight_decay=weight_decay, warmup_epochs=warmup_epochs, gamma=gamma, eps=eps)
  _check(l1=l1, clip_norm=clip_norm, layer_decay=layer_decay, power=power)
  _check_below_one(momentum=momentum, b1=b1, b2=b2)
  warmup_steps = round(warmup_epochs * steps_per_epoch)
  if warmup_steps and warmup_steps >= total_steps:
    epochs = total_steps / steps_per_epoch
    length = f'the whole training, {total_steps} steps, which are {epochs:.4g} epochs'
    raise InputError(
      f'optim.warmup_epochs: {warmup_epochs} is not less than {length}; shorten it, or lengthen train.epochs'
    )
  steps = [round(epoch * steps_per_epoch) for epoch in milestones]
  if steps and not 0 < min(steps) <= max(steps) < total_steps:
    epochs = total_steps / steps_per_epoch
    raise InputError(f'optim.milestones: expected epochs between 0 and {epochs:.4g}, found {tuple(milestones)}')
  rate = make_schedule(schedule, lr, total_steps, warmup_steps, steps, gamma, steps_per_epoch, power)
  decays = _negate(trees.match(params, no_decay, 'optim.no_decay'))
  begins = freezing.until(params, frozen, unfreeze, total_steps, steps_per_epoch)

  def build(begin: int) -> optax.GradientTransformation:
    shifted = (lambda count: rate(count + begin)) if begin else rate
    decay = optax.add_decayed_weights(weight_decay, decays)
    rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False)
    optimizers = {
      'sgd': lambda: optax.chain(decay, optax.sgd(shifted, momentum)),
      'nesterov': lambda: optax.chain(decay, optax.sgd(shifted, momentum, nesterov=True)),
      'adam': lambda: optax.chain(decay, optax.adam(shifted, b1, b2, eps)),
      'adamw': lambda: optax.adamw(shifted, b1, b2, eps, weight_decay=weight_decay, mask=decays),
      'lamb': lambda: optax.lamb(shifted, b1, b2, eps, weight_decay=weight_decay, mask=decays),
      'rmsprop': lambda: optax.chain(decay, rms, optax.sgd(shifted, momentum)),
    }
    if name not in optimizers:
      raise InputError(f'optim.name: unknown optimiser {name!r}{nearest(name, optimizers)}')
    return optimizers[name]()

  before = [freezing.held(begins, lambda _: add_l1(l1, decays))] if l1 else []
  before += [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  after = [scale_each(rate_factors(params, lr_mult, layer_decay))] if lr_mult or layer_decay != 1.0 else []
  tx = freezing.held(begins, build)  # alone where it can be: its state is what older checkpoints hold
  return optax.chain(*before, tx, *after) if before or after else tx, rate


def add_l1(strength: float, mask: Any) -> optax.GradientTransformation:
  """Return the transform that adds the gradient of ``strength * sum(|w|)`` where ``mask`` is true; 0 at ``w = 0``."""
  add = lambda update, param: update + strength * jnp.sign(param)
  return optax.masked(optax.stateless(lambda updates, params: jax.tree.map(add, updates, params)), mask)


def scale_each(factors: Any) -> optax.GradientTransformation:
  """Return the transform that multiplies each update by its own of ``factors``, a tree of floats."""
  return optax.stateless(lambda updates, _: jax.tree.map(lambda update, factor: factor * update, updates, factors))


def rate_factors(params: Any, lr_mult: Sequence[tuple[str, float]], layer_decay: float) -> Any:
  """Return the factor of each parameter's learning rate: a tree of floats.

  Raises:
    InputError: a pattern of ``lr_mult`` matches nothing, or a factor is out of range.
  """
  depths = layer_depths(trees.names(params))
  factors = jax.tree.unflatten(jax.tree.structure(params), [layer_decay**depth for depth in depths])
  chosen = jax.tree.map(lambda _: 1.0, params)
  for pattern, factor in reversed(lr_mult):  # the first match wins: it is set last
    _check(lr_mult=factor)
    chosen = jax.tree.map(
      lambda old, hit, new=factor: new if hit else old, chosen, trees.match(params, [pattern], 'optim.lr_mult')
    )
  return jax.tree.map(lambda a, b: a * b, factors, chosen)


def layer_depths(names: Sequence[str]) -> list[int]:
  """Return how many blocks up each parameter lies: 0 in the head, 1 in the last block, most in the stem."""

  def layer(name: str) -> tuple[float, ...]:
    if name.startswith('stem'):
      return (0,)
    block = re.match(r'stage(\d+)/block(\d+)/', name)
    return (int(block[1]), int(block[2])) if block else (math.inf,)

  order = sorted({layer(name) for name in names} | {(math.inf,)}, reverse=True)
  return [order.index(layer(name)) for name in names]


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

  One-cycle has a warm-up of its own, see ``onecycle``.

  Raises:
    InputError: ``name`` is unknown; milestones are missing, not rising or not given for ``'step'`` alone; or
      ``gamma`` leaves nothing of the rate by the end.
  """
  if (name == 'step') != bool(milestones):
    raise InputError("optim.milestones: give the epochs of optim.schedule='step', and of no other schedule")
  if sorted(set(milestones)) != list(milestones):
    raise InputError(f'optim.milestones: expected rising epochs, found those of steps {tuple(milestones)}')
  left = max(1, total_steps - warmup_steps)
  epochs_left = left / steps_per_epoch
  if name == 'exponential' and gamma < (least := 1e-9 ** (1 / epochs_left)):
    fix = f'expected at least {least:.2g} for {epochs_left:.4g} epochs, such as 0.95'
    raise InputError(f'optim.gamma: {gamma} each epoch leaves less than 1e-9 of optim.lr; {fix}')
  schedules = {
    'cosine': lambda: optax.cosine_decay_schedule(lr, left),
    'onecycle': lambda: onecycle(lr, total_steps, warmup_steps or ONECYCLE_RISE * total_steps),
    'exponential': lambda: lambda step: lr * gamma ** (step / steps_per_epoch),
    'polynomial': lambda: lambda step: lr * (1.0 - jnp.clip(step / left, 0.0, 1.0)) ** power,
    'step': lambda: optax.piecewise_constant_schedule(lr, {m - warmup_steps: gamma for m in milestones}),
    'constant': lambda: optax.constant_schedule(lr),
  }
  if name not in schedules:
    raise InputError(f'optim.schedule: unknown schedule {name!r}{nearest(name, schedules)}')
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

  def rate(step: Any) -> Any:
    up = between(lr * ONECYCLE_START, lr, step / max(peak, 1e-6))
    down = between(lr, lr * ONECYCLE_END, (step - peak) / max(last - peak, 1e-6))
    return jnp.where(step < peak, up, down)

  return rate


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
