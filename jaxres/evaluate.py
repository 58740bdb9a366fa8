"""Evaluation: the only loop that does it, over exactly N examples at any batch size and device count."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxres import config as config_lib
from jaxres import metrics
from jaxres.data import Dataset, Info, Pipeline
from jaxres.data.augment import normalize
from jaxres.errors import InputError, check_range
from jaxres.models import ResNet
from jaxres.runtime import sharding
from jaxres.runtime.compiler import compiler_options
from jaxres.runtime.memory import explain_oom
from jaxres.state import TrainState
from jaxres.tasks import Task

EvalStep = Callable[[Any, Any, Any], metrics.Sums]
PredictStep = Callable[[Any, Any, Any], tuple[jax.Array, ...]]
Views = Callable[[jax.Array], jax.Array]


class Outputs(NamedTuple):
  """What a network makes of the N examples of a split, in their order; in host memory."""

  logits: np.ndarray  # float32 [N, K]; of a task that has no classes, whatever the network's outputs are
  labels: np.ndarray  # int32 [N], or as the task's ``Labels`` says
  features: np.ndarray  # float32 [N, C]: what the classifier is given


def make_views(*, flip: bool = False, crop: int = 0, pad: int = 0) -> Views | None:
  """Return what test-time augmentation looks at: a function of images to several views of each.

  With ``crop`` or ``pad`` five crops, the four corners and the center; with ``flip`` their mirror images too: the ten
  of Krizhevsky et al. 2012, section 4.1, where images are larger than ``crop`` (``data.eval_image_size``).

  Args:
    flip: look at the mirror image of every view too.
    crop: pixels a side of the five crops; 0 is the images' own size, which asks for ``pad``.
    pad: mirrored pixels on every side of the image, before the crops.

  Returns:
    A function of uint8 ``[B, H, W, C]`` to ``[V, B, h, w, C]``; None where no view is set.

  Raises:
    InputError: a field is out of range; from the function, where a crop is larger than the padded image.
  """
  config_lib.check_types('tta', locals())
  for name, pixels in (('crop', crop), ('pad', pad)):
    check_range(f'tta.{name}', pixels, low=0, unit='pixels')
  if not (flip or crop or pad):
    return None

  def views(images: jax.Array) -> jax.Array:
    stacked = five_crops(images, crop, pad) if crop or pad else images[None]
    return jnp.concatenate([stacked, stacked[:, :, :, ::-1]]) if flip else stacked

  return views


def check_views(views: Views | None, image_shape: tuple[int, int, int]) -> None:
  """Raise InputError where ``views`` cannot be taken of images ``[H, W, C]``."""
  if views:
    jax.eval_shape(views, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8))


def five_crops(images: jax.Array, crop: int, pad: int) -> jax.Array:
  """Return the corners and the center of ``images``, ``[B, H, W, C]``, as ``[5, B, h, w, C]``; see ``make_views``.

  The center is that of torchvision's ``FiveCrop``.
  """
  height, width = (crop or size for size in images.shape[1:3])
  bottom, right = images.shape[1] + 2 * pad - height, images.shape[2] + 2 * pad - width
  if min(bottom, right) < 0 or pad >= min(images.shape[1:3]):
    problem = f'crops of {crop or "the same size"} from images of {images.shape[2]}x{images.shape[1]} padded by {pad}'
    raise InputError('tta', problem, expected='tta.crop no larger than the padded image, and less padding than image')
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode='reflect')
  corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
  return jnp.stack([padded[:, top : top + height, left : left + width] for top, left in corners])


def make_eval_step(
  model: ResNet, task: Task, info: Info, get_batch: Callable[..., Any], mesh: Mesh, views: Views | None = None
) -> EvalStep:
  """Return the jitted step: ``(variables, constants, feed)`` to the masked sums of the task's metrics.

  The loss is the task's ``eval_loss``, whatever the training minimizes; with ``views`` it and the metrics are those of
  the views' average answer.
  """

  def predict(variables: Any, images: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, normalize(images, info.mean, info.std), train=False)
    return logits

  def mean_of_views(variables: Any, images: jax.Array) -> jax.Array:
    each = jax.lax.map(lambda view: task.answer(predict(variables, view)), views(images))  # type: ignore[misc]
    return task.average(each)

  def eval_step(variables: Any, device_data: Any, feed: Any) -> metrics.Sums:
    batch = get_batch(device_data, feed)
    outputs = (mean_of_views if views else predict)(variables, batch['image'])
    return task.sums(task.eval_loss(outputs, batch), outputs, batch)

  replicated, split = sharding.replicated_sharding(mesh), sharding.batch_sharding(mesh)
  return jax.jit(
    eval_step,
    in_shardings=(replicated, replicated, split),
    out_shardings=replicated,
    compiler_options=compiler_options(),
  )


def make_predict_step(model: ResNet, info: Info, get_batch: Callable[..., Any], mesh: Mesh) -> PredictStep:
  """Return the jitted step: ``(variables, constants, feed)`` to the fields of ``Outputs``, and the batch's mask."""

  def predict_step(variables: Any, device_data: Any, feed: Any) -> tuple[jax.Array, ...]:
    batch = get_batch(device_data, feed)
    images = normalize(batch['image'], info.mean, info.std)
    stages: Any = model.apply(variables, images, train=False, method='features')
    logits: Any = model.apply(variables, stages, method='head')
    return logits, batch['label'], model.pool_features(stages), batch['mask']

  replicated, split = sharding.replicated_sharding(mesh), sharding.batch_sharding(mesh)
  return jax.jit(
    predict_step,
    in_shardings=(replicated, replicated, split),
    out_shardings=split,
    compiler_options=compiler_options(),
  )


def predict(
  predict_step: PredictStep,
  variables: Any,
  pipeline: Pipeline,
  batch_size: int,
  tell: Callable[[str], None] = lambda _: None,
) -> Outputs:
  """Return what ``variables`` make of every example of ``pipeline``, once each.

  Args:
    predict_step: of ``make_predict_step``.
    variables: of the model.
    pipeline: a split; its last batch is filled up and masked.
    batch_size: a multiple of the number of devices.
    tell: called with how far it is, before each batch.
  """
  batches = []
  for number, feed in enumerate(pipeline.eval_inputs(batch_size)):
    tell(f'{number * batch_size:,} of {pipeline.size:,} examples')
    batches.append(jax.device_get(predict_step(variables, pipeline.device_data, feed)))
  *outputs, mask = map(np.concatenate, zip(*batches, strict=True))
  return Outputs(*(output[mask] for output in outputs))


def evaluate(
  eval_step: EvalStep,
  variables: Any,
  pipeline: Pipeline,
  batch_size: int,
  prefix: str,
  limit: int | None = None,
  stop: Callable[[], bool] = lambda: False,
  means: metrics.Means = metrics.divide_by_count,
) -> dict[str, float] | None:
  """Return the metrics of ``variables`` over every example of ``pipeline``, once each; None where it was stopped.

  Args:
    eval_step: of ``make_eval_step``.
    variables: of the model.
    pipeline: a split; its last batch is filled up and masked.
    batch_size: a multiple of the number of devices.
    prefix: of the names in the result, such as ``'test'``.
    limit: stop after this many batches.
    stop: asked before each batch is read; where it says yes, nothing more is done. Behind the last one it is not asked:
      what is complete is kept.
    means: of the task.

  Raises:
    InputError: a batch does not fit into the memory of the device.
  """
  total: metrics.Sums | None = None
  count = -(-pipeline.size // batch_size)
  with explain_oom(f'evaluating {batch_size} examples at a time', f'use train.eval_batch_size={batch_size // 2}'):
    feeds = pipeline.eval_inputs(batch_size)
    for _ in range(count if limit is None else min(limit, count)):
      if stop():
        return None
      rows = next(feeds)
      feed = sharding.make_global_arrays(rows, sharding.batch_sharding(pipeline.mesh)) if pipeline.mesh else rows
      part = eval_step(variables, pipeline.device_data, feed)
      total = part if total is None else metrics.merge(total, part)
    return metrics.compute_means(jax.device_get(total), prefix, means) if total else {}


def evaluate_splits(
  eval_step: EvalStep,
  variables: Any,
  dataset: Dataset,
  batch_size: int,
  limit: int | None = None,
  stop: Callable[[], bool] = lambda: False,
  means: metrics.Means = metrics.divide_by_count,
) -> dict[str, float] | None:
  """Return ``evaluate`` of the validation split, if there is one, and of the test split; None where it was stopped."""
  scores: dict[str, float] = {}
  for prefix, pipeline in (('val', dataset.val), ('test', dataset.test)):
    if pipeline is None:
      continue
    of_split = evaluate(eval_step, variables, pipeline, batch_size, prefix, limit, stop, means)
    if of_split is None:
      return None
    scores |= of_split
  return scores


def evaluate_state(
  eval_steps: Mapping[str, EvalStep],
  train_state: TrainState,
  dataset: Dataset,
  batch_size: int,
  limit: int | None = None,
  stop: Callable[[], bool] = lambda: False,
  means: metrics.Means = metrics.divide_by_count,
) -> dict[str, float] | None:
  """Return ``evaluate_splits`` of the weights, and as ``ema/...`` of their moving average, where one is kept.

  Each is done with every one of ``eval_steps``, whose names, such as ``''`` and ``'tta/'``, lead those of the metrics.
  Where ``stop`` says yes before the last batch of all, it is None.
  """
  scores: dict[str, float] = {}
  for weights, variables in (('', train_state.variables), ('ema/', sharding.gather(train_state.ema))):
    for prefix, eval_step in eval_steps.items() if variables else ():
      of_splits = evaluate_splits(eval_step, variables, dataset, batch_size, limit, stop, means)
      if of_splits is None:
        return None
      scores |= {f'{weights}{prefix}{name}': value for name, value in of_splits.items()}
  return scores
