"""The optimizer: one optax ``tx`` and its learning-rate schedule."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import optax

from jaxres import config as config_lib
from jaxres import trees
from jaxres.errors import InputError, check_range, check_word
from jaxres.optim import freezing, schedules, transforms

MAX_LAYER_DECAY = 100.0  # of which a float holds the power for the blocks of any network


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
  lr_scale: Any = 1.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Return the optimizer and its learning rate as a function of the step.

  Args:
    params: the parameters, or their shapes; only names are read.
    total_steps: of the training.
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
    lr_mult: pairs of a regular expression and a factor of the learning rate; the first that matches the full name
      of a parameter counts, such as ``(('stem/.*', 0.0), ('stage.*', 0.1))``.
    layer_decay: the learning rate is multiplied by this once for every block between a parameter and the head: 1
      time in the last block, most often in the stem.
    frozen: regular expressions of the parameters that stay as they are, full names again, such as ``'stem/.*'``: no
      gradient, decay or momentum; a BatchNorm whose parameters are all frozen normalizes by its running statistics,
      which stay as they are too. ``'(?!head/).*'`` is all but the head.
    unfreeze: pairs of a regular expression and the epoch from which on what it matches of ``frozen`` is trained; the
      first match counts, such as ``(('stage4/.*', 1.0), ('stage3/.*', 2.0))``. Its momentum starts there.
    schedule: ``'cosine'`` to zero, ``'onecycle'``, ``'exponential'`` (times ``gamma`` each epoch), ``'polynomial'``
      to zero, ``'step'`` (times ``gamma`` at each milestone) or ``'constant'``; ``make_schedule`` has the formulas.
    warmup_epochs: the rate rises linearly from 0 over this many epochs; the schedule starts behind it. Of
      ``'onecycle'`` it is the length of the rise, 30 % of the training where it is 0.
    milestones: epochs of the ``'step'`` schedule, counted from the start of the training.
    gamma: factor of the ``'step'`` and ``'exponential'`` schedules.
    power: of the ``'polynomial'`` schedule.
    lr_scale: float32 scalar, may be traced: times the learning rate at every step. It is no field of the config.

  Raises:
    InputError: a name is unknown, a value is out of range, or a pattern matches nothing.
  """
  check(**locals())
  warmup_steps, steps = to_steps(warmup_epochs, milestones, total_steps, steps_per_epoch)
  lr_schedule = schedules.make_schedule(schedule, lr, total_steps, warmup_steps, steps, gamma, steps_per_epoch, power)
  decays = _negate(trees.match(params, no_decay, 'optim.no_decay'))
  starts = freezing.unfreeze_steps(params, frozen, unfreeze, total_steps, steps_per_epoch)

  def build(start: int) -> optax.GradientTransformation:
    scaled = lambda count: lr_scale * lr_schedule(count + start)
    optimizers = make_optimizers(scaled, decays, momentum=momentum, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    check_word('optim.name', name, optimizers, 'optimizer')
    return optimizers[name]()

  before = [freezing.partition_by_thaw(starts, lambda _: transforms.add_l1(l1, decays))] if l1 else []
  before += [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  after = (
    [transforms.scale_by_factors(transforms.lr_factors(params, lr_mult, layer_decay))]
    if lr_mult or layer_decay != 1.0
    else []
  )
  tx = freezing.partition_by_thaw(starts, build)  # alone where it can be: its state is what older checkpoints hold
  return optax.chain(*before, tx, *after) if before or after else tx, lr_schedule


def check(
  *,
  lr: float,
  momentum: float,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  l1: float,
  clip_norm: float,
  layer_decay: float,
  warmup_epochs: float,
  gamma: float,
  power: float,
  **others: Any,
) -> None:
  """Raise InputError where an argument of ``make`` is of another type or out of its range, whatever is trained."""
  config_lib.check_types('optim', locals() | others)
  numbers = dict(lr=lr, weight_decay=weight_decay, warmup_epochs=warmup_epochs, gamma=gamma, eps=eps)
  numbers |= dict(l1=l1, clip_norm=clip_norm, power=power)
  for field, value in numbers.items():
    check_range(f'optim.{field}', value, low=0)
  check_range('optim.layer_decay', layer_decay, low=0)
  check_range('optim.layer_decay', layer_decay, high=MAX_LAYER_DECAY)
  for field, value in dict(momentum=momentum, b1=b1, b2=b2).items():
    check_range(f'optim.{field}', value, low=0, below=1)


def to_steps(
  warmup_epochs: float, milestones: Sequence[float], total_steps: int, steps_per_epoch: float
) -> tuple[int, list[int]]:
  """Return the steps of the warm-up, and those at which the milestones are.

  Args:
    warmup_epochs: epochs of the warm-up.
    milestones: epochs from the start of the training.
    total_steps: of the training.
    steps_per_epoch: may be fractional.

  Raises:
    InputError: they lie outside the training.
  """
  warmup_steps = schedules.step_at(warmup_epochs, steps_per_epoch, total_steps)
  if warmup_steps and warmup_steps >= total_steps:
    epochs = total_steps / steps_per_epoch
    length = f'the training, {total_steps} steps, which are {epochs:.4g} epochs'
    raise InputError(
      'optim.warmup_epochs', f'{warmup_epochs} is not less than {length}', fix='shorten it, or lengthen train.epochs'
    )
  steps = [schedules.step_at(epoch, steps_per_epoch, total_steps) for epoch in milestones]
  if steps and not 0 < min(steps) <= max(steps) < total_steps:
    epochs = total_steps / steps_per_epoch
    raise InputError('optim.milestones', expected=f'epochs between 0 and {epochs:.4g}', found=tuple(milestones))
  return warmup_steps, steps


def make_optimizers(
  rate: optax.Schedule, decays: Any, *, momentum: float, b1: float, b2: float, eps: float, weight_decay: float
) -> dict[str, Callable[[], optax.GradientTransformation]]:
  """Return what makes each optimizer, by its name.

  Args:
    rate: the learning rate of a step.
    decays: a tree of bools like the parameters: which of them decay.
    momentum: of SGD, Nesterov and RMSProp.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: for AdamW and LAMB decoupled, for the others added to the gradient.
  """
  decay = optax.add_decayed_weights(weight_decay, decays)
  rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False)
  return {
    'sgd': lambda: optax.chain(decay, optax.sgd(rate, momentum)),
    'nesterov': lambda: optax.chain(decay, optax.sgd(rate, momentum, nesterov=True)),
    'adam': lambda: optax.chain(decay, optax.adam(rate, b1, b2, eps)),
    'adamw': lambda: optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=decays),
    'lamb': lambda: optax.lamb(rate, b1, b2, eps, weight_decay=weight_decay, mask=decays),
    'rmsprop': lambda: optax.chain(decay, rms, optax.sgd(rate, momentum)),
  }


def _negate(mask: Any) -> Any:
  return jax.tree.map(lambda m: not m, mask)
