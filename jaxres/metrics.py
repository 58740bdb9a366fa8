"""Metrics as masked sums: made on the device, merged by addition, divided once at the end."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Sums = dict[str, jax.Array]
Means = Callable[[Mapping[str, float]], dict[str, float]]  # sums over examples, and their count, to metrics
MIN_TOP5_CLASSES = 6  # with fewer, every prediction is a top-5 hit, and top-5 is left out


class Metric(NamedTuple):
  """How a metric is called, written and compared.

  Attributes:
    title: for a person, such as ``'top-1'``.
    scale: ``'fraction'`` is in [0, 1] and written in per cent, ``'positive'`` is at least 0, ``'real'`` has no bounds.
    larger_is_better: whether more of it is better.
  """

  title: str
  scale: Literal['fraction', 'positive', 'real'] = 'real'
  larger_is_better: bool = False


LOSS = Metric('loss', 'positive')


def find_metric(name: str, known: Mapping[str, Metric]) -> Metric | None:
  """Return what is known of the metric ``name``, such as ``'ema/val/top1'``; None where it is none of the task's."""
  return known.get(name.rpartition('/')[2])


def label_rank(logits: Float[Array, 'B K'], label: Int[Array, ' B']) -> Int[Array, ' B']:
  """Return how many classes rank before the label in a stable sort by descending logit.

  A NaN anywhere ranks before the label, so that a broken model is never counted as right.

  Args:
    logits: float ``[B, K]``.
    label: int32 ``[B]``.

  Returns:
    int32 ``[B]``: 0 where the label is the arg-max.
  """
  label_logit = jnp.take_along_axis(logits, label[:, None], axis=-1)
  earlier = jnp.arange(logits.shape[-1])[None] < label[:, None]
  return jnp.sum(~(logits <= label_logit) | ((logits == label_logit) & earlier), axis=-1)


def sums(
  loss: Float[Array, ' B'],
  logits: Float[Array, 'B K'],
  label: Int[Array, ' B'] | Float[Array, 'B K'],
  mask: Bool[Array, ' B'] | None = None,
) -> Sums:
  """Return the sums of loss, top-1 and top-5 hits over the examples that ``mask`` keeps, and their count.

  Args:
    loss: float32 ``[B]``, one per example.
    logits: float32 ``[B, K]``.
    label: int32 ``[B]``, or distributions over the classes, float32 ``[B, K]``, whose most probable class counts.
    mask: bool ``[B]``; None keeps all.

  Returns:
    float32 scalars ``loss``, ``top1``, ``count``, and with 6 classes or more ``top5``.
  """
  if label.ndim == logits.ndim:
    label = label.argmax(axis=-1)
  keep = jnp.ones(label.shape, bool) if mask is None else mask
  rank = label_rank(logits, label)
  values = {'loss': loss, 'top1': rank < 1, 'count': jnp.ones_like(label)}
  if logits.shape[-1] >= MIN_TOP5_CLASSES:
    values['top5'] = rank < 5
  return {name: jnp.sum(jnp.where(keep, value.astype(jnp.float32), 0.0)) for name, value in values.items()}


def merge(a: Sums, b: Sums) -> Sums:
  """Return the sums over both sets of examples."""
  return jax.tree.map(jnp.add, a, b)


def divide_by_count(total: Mapping[str, float]) -> dict[str, float]:
  """Return the mean over the examples of each sum."""
  return {name: value / total['count'] for name, value in total.items() if name != 'count'}


def compute_means(total: Mapping[str, SupportsFloat], prefix: str, means: Means = divide_by_count) -> dict[str, float]:
  """Return the metrics of sums as ``{'<prefix>/loss': nats, '<prefix>/top1': fraction}``; ``means`` is the task's."""
  values = means({name: float(value) for name, value in total.items()})
  return {f'{prefix}/{name}': value for name, value in values.items()}


def is_evaluation(values: Mapping[str, float]) -> bool:
  """Return whether metrics are of an evaluation, not only of the training."""
  return any(name.startswith(('val/', 'test/')) for name in values)
