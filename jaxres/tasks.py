"""Tasks: what a network's outputs mean, what they are trained for and how they are scored. A row of ``TASKS`` each.

Nothing else in the core knows that the problem is classification.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxres import config as config_lib
from jaxres import data, losses, metrics
from jaxres.data import types
from jaxres.errors import InputError

Batch = data.Batch


class Answer(NamedTuple):
  """What the outputs of a network say of an image."""

  content: Mapping[str, Any]  # ready for JSON
  lines: list[str]  # for a person


class Task(NamedTuple):
  """What is learned. It is made before the data is read, which asks it what labels are.

  Attributes:
    labels: what the data's are, and which of them are wrong; ``data.types`` has the usual ones.
    num_outputs: of the data's description, to the width of the model's last layer.
    loss: ``(outputs, batch, step, extras)`` to the loss that training minimizes, float32 ``[B]``. ``outputs`` are
      float32 ``[B, K]``, or ``[V, B, K]`` where there are V views of an example; ``batch`` is the augmented one;
      ``step`` is an int32 scalar; ``extras`` are the task's arrays.
    eval_loss: ``(outputs, batch)`` to the loss that evaluation reports, float32 ``[B]``.
    sums: ``(loss, outputs, batch)`` to float32 sums over the examples that ``batch['mask']`` keeps (all, where there is
      none): ``loss``, what the metrics are made of, and ``count``. In training the outputs are those of ``loss``.
    metrics: by name: how each is called, written and compared; ``loss`` is one.
    monitor: the one of the validation split that keep-best and early stopping look at.
    answer: outputs to answers that can be averaged over views, such as log-probabilities.
    average: answers of V views, ``[V, B, ...]``, to one, which ``eval_loss`` and ``sums`` take as outputs.
    describe: ``(outputs [K], class_names, at_most)``, in host memory, to what they say of an image; of many parts, such
      as classes, the first ``at_most``.
    means: sums over examples and their count, to metrics by name.
    make_extras: of the data, to a tree of arrays that ``loss`` is given. They lie on every device, and are an argument
      of the compiled step, as the data is.
    views: augmentations of each example that ``loss`` is given together; see ``data.augment.with_views``.
  """

  labels: types.Labels
  num_outputs: Callable[[data.Info], int]
  loss: Callable[[Any, Batch, jax.Array, Any], jax.Array]
  eval_loss: Callable[[Any, Batch], jax.Array]
  sums: Callable[[jax.Array, Any, Batch], metrics.Sums]
  metrics: Mapping[str, metrics.Metric]
  monitor: str
  answer: Callable[[Any], Any]
  average: Callable[[Any], Any]
  describe: Callable[[np.ndarray, Sequence[str], int], Answer]
  means: metrics.Means = metrics.divide_by_count
  make_extras: Callable[[data.Dataset], Any] = lambda dataset: None
  views: int = 1

  def score(self, scores: Mapping[str, float]) -> float | None:
    """Return what keep-best and early stopping compare, larger is better; None where validation was not scored.

    What is not a number is worse than every number.

    Args:
      scores: metrics of an evaluation by name; of the moving average (``ema/val/...``) where there is one.
    """
    value = scores.get(f'ema/val/{self.monitor}', scores.get(f'val/{self.monitor}'))
    if value is None:
      return None
    if math.isnan(value):
      return -math.inf
    return value if self.metrics[self.monitor].larger_is_better else -value


def classification(*, loss: str, label_smoothing: float, target_threshold: float) -> Task:
  """Return the task of telling one class of several; batches have ``label`` int32 ``[B]`` or float32 ``[B, K]``.

  Args:
    loss: a name of ``losses.LOSSES``.
    label_smoothing: of the loss.
    target_threshold: of the loss.

  Raises:
    InputError: as ``losses.get``.
  """
  loss_of = losses.get(loss, label_smoothing=label_smoothing, target_threshold=target_threshold)
  return Task(
    labels=types.CLASSES,
    num_outputs=lambda info: len(info.class_names),
    loss=lambda logits, batch, step, extras: loss_of(logits, batch['label']),
    eval_loss=lambda logits, batch: losses.softmax_xent(logits, batch['label']),
    sums=lambda loss, logits, batch: metrics.sums(loss, logits, batch['label'], batch.get('mask')),
    metrics={
      'loss': metrics.LOSS,
      'top1': metrics.Metric('top-1', 'fraction', larger_is_better=True),
      'top5': metrics.Metric('top-5', 'fraction', larger_is_better=True),
    },
    monitor='top1',
    answer=jax.nn.log_softmax,
    average=mean_log_probability,
    describe=likeliest_classes,
  )


def mean_log_probability(each: jax.Array) -> jax.Array:
  """Return the log of the mean probability of V views, ``[V, B, K]``, as ``[B, K]``."""
  return jax.nn.logsumexp(each, axis=0) - jnp.log(len(each))


def likeliest_classes(logits: np.ndarray, class_names: Sequence[str], max_classes: int) -> Answer:
  """Return the likeliest classes of an image with their probabilities, by logits float32 ``[K]``."""
  probabilities = scipy.special.softmax(np.float64(logits))
  likeliest = np.argsort(-logits, kind='stable')[:max_classes]
  rows = [(class_names[k], float(probabilities[k])) for k in likeliest]
  content = {'top': [{'class': name, 'probability': p} for name, p in rows]}
  return Answer(content, [f'{p:8.2%}  {name}' for name, p in rows])


TASKS: dict[str, Callable[..., Task]] = {'classification': classification}
DEFAULTS: Mapping[str, Any] = {'loss': 'softmax_xent', 'label_smoothing': 0.0, 'target_threshold': 0.0}


def make(name: str, **fields: Any) -> Task:
  """Return the task called ``name``.

  Args:
    name: of ``TASKS``, or ``package.module:name``, a function that is called as a row of ``TASKS`` is.
    **fields: ``loss``, ``label_smoothing`` and ``target_threshold`` of the section ``train``; else of ``DEFAULTS``.

  Raises:
    InputError: ``name`` is unknown, is no task, or a field cannot be used.
  """
  fields = {**DEFAULTS, **fields}
  make_task = config_lib.resolve('train.task', name, TASKS)
  try:
    inspect.signature(make_task).bind(**fields)
  except (TypeError, ValueError) as error:
    raise InputError('train.task', f'{name}: it is called with {", ".join(fields)}: {error}') from None
  task = make_task(**fields)
  if not isinstance(task, Task):
    raise InputError(f'train.task: {name}', expected='a function that returns a jaxres.tasks.Task', found=type(task))
  if task.monitor not in task.metrics or 'loss' not in task.metrics:
    raise InputError(
      f'train.task: {name}', expected=f'metrics with loss and {task.monitor}', found=', '.join(task.metrics)
    )
  return task


def make_from(options: Mapping[str, Any]) -> Task:
  """Return the task that the section ``train`` of a config names. Raises as ``make``."""
  return make(options['task'], **{name: options[name] for name in DEFAULTS})
