"""Evaluation: the only loop that does it, over exactly N examples at any batch size and device count."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxres import losses, metrics, sharding
from jaxres.backend import compiler_options
from jaxres.data import Dataset, Info, Pipeline
from jaxres.data.augment import normalize
from jaxres.models import ResNet
from jaxres.state import TrainState

EvalStep = Callable[[Any, Any, Any], metrics.Sums]


def make_eval_step(model: ResNet, info: Info, fetch: Callable[..., Any], mesh: Mesh) -> EvalStep:
  """Return the jitted step: ``(variables, constants, feed)`` to masked sums of loss, top-1 and top-5.

  The loss is the plain cross-entropy in nats, whatever the training minimises.
  """

  def eval_step(variables: Any, constants: Any, feed: Any) -> metrics.Sums:
    batch = fetch(constants, feed)
    logits: Any = model.apply(variables, normalize(batch['image'], info.mean, info.std), train=False)
    loss = losses.softmax_xent(logits, batch['label'])
    return metrics.sums(loss, logits, batch['label'], batch['mask'])

  whole, split = sharding.replicated(mesh), sharding.over_batch(mesh)
  return jax.jit(
    eval_step,
    in_shardings=(whole, whole, split),
    out_shardings=whole,
    compiler_options=compiler_options(),
  )


def evaluate(
  eval_step: EvalStep,
  variables: Any,
  pipeline: Pipeline,
  batch_size: int,
  prefix: str,
  limit: int | None = None,
) -> dict[str, float]:
  """Return loss, top-1 and top-5 of ``variables`` over every example of ``pipeline``, once each.

  Args:
    eval_step: of ``make_eval_step``.
    variables: of the model.
    pipeline: a split; its last batch is filled up and masked.
    batch_size: a multiple of the number of devices.
    prefix: of the names in the result, such as ``'test'``.
    limit: stop after this many batches.
  """
  total = None
  for feed in itertools.islice(pipeline.eval_feeds(batch_size), limit):
    part = eval_step(variables, pipeline.constants, feed)
    total = part if total is None else metrics.merge(total, part)
  return metrics.compute(jax.device_get(total), prefix)


def evaluate_splits(
  eval_step: EvalStep, variables: Any, dataset: Dataset, batch_size: int, limit: int | None = None
) -> dict[str, float]:
  """Return ``evaluate`` of the validation split, if there is one, and of the test split."""
  scores: dict[str, float] = {}
  for prefix, pipeline in (('val', dataset.val), ('test', dataset.test)):
    if pipeline is not None:
      scores |= evaluate(eval_step, variables, pipeline, batch_size, prefix, limit)
  return scores


def evaluate_state(
  eval_step: EvalStep, train_state: TrainState, dataset: Dataset, batch_size: int, limit: int | None = None
) -> dict[str, float]:
  """Return ``evaluate_splits`` of the weights, and as ``ema/...`` of their moving average, where one is kept."""
  scores = evaluate_splits(eval_step, train_state.variables, dataset, batch_size, limit)
  if train_state.ema is None:
    return scores
  averaged = evaluate_splits(eval_step, train_state.ema, dataset, batch_size, limit)
  return scores | {f'ema/{name}': value for name, value in averaged.items()}
