"""Tasks: what a network's outputs mean, what they are trained for and how they are scored. A row of ``TASKS`` each.

Nothing else in the core knows that the problem is classification.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxres import data, losses, metrics
from jaxres.errors import InputError, nearest

Batch = data.Batch


class Task(NamedTuple):
  """What is learned.

  Attributes:
    num_outputs: width of the model's last layer.
    loss: ``(outputs, batch, step, extras)`` to the loss that training minimizes, float32 ``[B]``. ``outputs`` are
      float32 ``[B, K]``, or ``[V, B, K]`` where the augmentation makes V views of an example; ``batch`` is the
      augmented one; ``step`` is an int32 scalar; ``extras`` are the task's arrays.
    eval_loss: ``(outputs, batch)`` to the loss that evaluation reports, float32 ``[B]``.
    sums: ``(loss, outputs, batch)`` to float32 sums over the examples that ``batch['mask']`` keeps (all, where there is
      none), one a metric, and their ``count``.
    monitor: the metric of the validation split that keep-best and early stopping look at, such as ``'top1'``.
    larger_is_better: whether more of it is better.
    answer: outputs to answers that can be averaged over views, such as log-probabilities.
    average: answers of V views, ``[V, B, ...]``, to one, which ``eval_loss`` and ``sums`` take as outputs.
    extras: a tree of arrays that ``loss`` is given; an argument of the compiled step, as the data is.
  """

  num_outputs: int
  loss: Callable[[Any, Batch, jax.Array, Any], jax.Array]
  eval_loss: Callable[[Any, Batch], jax.Array]
  sums: Callable[[jax.Array, Any, Batch], metrics.Sums]
  monitor: str
  larger_is_better: bool
  answer: Callable[[Any], Any]
  average: Callable[[Any], Any]
  extras: Any = None

  def score(self, scores: Mapping[str, float]) -> float | None:
    """Return what keep-best and early stopping compare, larger is better; None where validation was not scored.

    Args:
      scores: metrics of an evaluation by name; of the moving average (``ema/val/...``) where there is one.
    """
    value = scores.get(f'ema/val/{self.monitor}', scores.get(f'val/{self.monitor}'))
    return value if value is None or self.larger_is_better else -value


def classification(info: data.Info, *, loss: str, label_smoothing: float, target_threshold: float) -> Task:
  """Return the task of telling one class of several; batches have ``label`` int32 ``[B]`` or float32 ``[B, K]``.

  Args:
    info: of the data: it names the classes.
    loss: a name of ``losses.LOSSES``.
    label_smoothing: of the loss.
    target_threshold: of the loss.

  Raises:
    InputError: as ``losses.get``.
  """
  loss_of = losses.get(loss, label_smoothing=label_smoothing, target_threshold=target_threshold)
  return Task(
    num_outputs=len(info.class_names),
    loss=lambda logits, batch, step, extras: loss_of(logits, batch['label']),
    eval_loss=lambda logits, batch: losses.softmax_xent(logits, batch['label']),
    sums=lambda loss, logits, batch: metrics.sums(loss, logits, batch['label'], batch.get('mask')),
    monitor='top1',
    larger_is_better=True,
    answer=jax.nn.log_softmax,
    average=mean_log_probability,
  )


def mean_log_probability(each: jax.Array) -> jax.Array:
  """Return the log of the mean probability of V views, ``[V, B, K]``, as ``[B, K]``."""
  return jax.nn.logsumexp(each, axis=0) - jnp.log(len(each))


TASKS: dict[str, Callable[..., Task]] = {'classification': classification}


def make(name: str, info: data.Info, **fields: Any) -> Task:
  """Return the task called ``name``.

  Args:
    name: of ``TASKS``.
    info: of the data.
    **fields: ``loss``, ``label_smoothing`` and ``target_threshold`` of the section ``train``.

  Raises:
    InputError: ``name`` is unknown, or a field cannot be used.
  """
  if name not in TASKS:
    raise InputError(f'train.task: unknown task {name!r}{nearest(name, TASKS)}')
  return TASKS[name](info, **fields)
