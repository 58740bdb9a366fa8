"""The gradient of a batch: all at once, in parts, device by device."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxres import data, metrics
from jaxres.data import augment as augment_lib
from jaxres.models import ResNet
from jaxres.optim import freezing
from jaxres.runtime import sharding
from jaxres.tasks import Task


class Context(NamedTuple):
  """What a loss is given beside the parameters and the batch."""

  rng: jax.Array  # the key of the step, or of a part of its batch
  step: jax.Array  # steps taken before, int32 scalar
  extras: Any = None  # the task's arrays


LossFn = Callable[[Any, Any, data.Batch, Context], tuple[jax.Array, tuple[Any, metrics.Sums]]]
# (params, batch_stats, constants, feed, context) -> (grads, (batch_stats, sums))
Gradient = Callable[[Any, Any, Any, Any, Context], tuple[Any, tuple[Any, metrics.Sums]]]


def make_loss(model: ResNet, task: Task, augment: augment_lib.Augment, info: data.Info, frozen: Any = None) -> LossFn:
  """Return ``(params, batch_stats, batch, context) -> (loss, (batch_stats, sums))``: the mean loss of a batch.

  Args:
    model: in training mode.
    task: what is learned.
    augment: of ``augment.make``. Where it makes several views of an example, ``image`` ``[V, B, H, W, C]``, they go
      through the model together, and its outputs are ``[V, B, K]``.
    info: has the statistics that images are normalized with.
    frozen: a tree of bools like the parameters: those that have no gradient; None where all have one.
  """

  def loss_fn(
    params: Any, batch_stats: Any, batch: data.Batch, context: Context
  ) -> tuple[jax.Array, tuple[Any, metrics.Sums]]:
    batch = augment.batch(context.rng, batch, task.labels, len(info.class_names))
    images = augment_lib.normalize(batch['image'], info.mean, info.std)
    views = images.shape[:-3]  # [B], or [V, B]
    params = params if frozen is None else freezing.stop_frozen_gradients(params, frozen)
    variables = {'params': params, 'batch_stats': batch_stats}
    images = images if len(views) == 1 else images.reshape(-1, *images.shape[-3:])
    outputs, updates = model.apply(
      variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': context.rng}
    )
    outputs = outputs if len(views) == 1 else outputs.reshape(*views, -1)
    each = task.loss(outputs, batch, context.step, context.extras)
    return each.mean(), (updates['batch_stats'], task.sums(each, outputs, batch))

  return loss_fn


def make_gradient(
  loss_fn: LossFn,
  get_batch: Callable[..., data.Batch],
  mesh: Mesh,
  accumulate: int,
  later: Sequence[tuple[int, LossFn]],
  per_device_bn: bool,
) -> Gradient:
  """Return ``(params, batch_stats, constants, feed, context) -> (grads, (batch_stats, sums))``.

  The arguments are those of ``step.make_train_steps``.
  """
  make = per_device_gradients if per_device_bn else accumulate_gradients
  losses_of = [loss_fn, *(loss_fn for _, loss_fn in later)]
  return select_by_step([make(f, get_batch, accumulate, mesh) for f in losses_of], [start for start, _ in later])


def select_by_step(functions: Sequence[Gradient], starts: Sequence[int]) -> Gradient:
  """Return the function that calls the first of ``functions``, or the last that starts at or before the step.

  Args:
    functions: with results alike.
    starts: rising steps, at which the second and those after it start.
  """
  if not starts:
    return functions[0]
  return lambda *args: jax.lax.switch((args[-1].step >= jnp.array(starts)).sum(), functions, *args)


def per_device_gradients(loss_fn: LossFn, get_batch: Callable[..., data.Batch], parts: int, mesh: Mesh) -> Gradient:
  """Return ``accumulate_gradients`` done by each device alone, with the BatchNorm statistics of its part.

  The gradients and the running statistics are averaged, and the sums of metrics added up, in one all-reduce; there is
  no other communication. The augmentation and the dropout of device ``d`` have the key ``fold_in(rng, d)``, and mixing
  stays within a device.
  """
  gradient = accumulate_gradients(loss_fn, get_batch, parts)

  def on_device(params: Any, batch_stats: Any, device_data: Any, feed: Any, context: Context) -> tuple[Any, Any]:
    context = context._replace(rng=jax.random.fold_in(context.rng, jax.lax.axis_index(sharding.AXIS)))
    grads, (stats, sums) = gradient(params, batch_stats, device_data, feed, context)
    means = jax.tree.map(lambda x: x / mesh.size, (grads, stats))
    (grads, stats), sums = jax.lax.psum((means, sums), sharding.AXIS)
    return grads, (stats, sums)

  replicated, split = PartitionSpec(), PartitionSpec(sharding.AXIS)
  return jax.shard_map(  # nothing varies that leaves it, which the check cannot see through hand-written gradients
    on_device,
    mesh=mesh,
    in_specs=(replicated, replicated, replicated, split, replicated),
    out_specs=replicated,
    check_vma=False,
  )


def accumulate_gradients(
  loss_fn: LossFn, get_batch: Callable[..., data.Batch], parts: int, mesh: Mesh | None = None
) -> Gradient:
  """Return the gradient over a batch that goes through the model in ``parts``.

  The gradient is the mean of those of the parts. The batch statistics pass from part to part, and part ``i``, which
  has examples ``i, i + parts, ...`` so that no example leaves its device, has the key ``fold_in(rng, i)``.

  Args:
    loss_fn: of ``make_loss``.
    get_batch: ``(constants, feed)`` to the batch: of a pipeline.
    parts: how many.
    mesh: what the batch is split over; None where it is of one device.
  """
  gradient = jax.grad(loss_fn, has_aux=True)

  def compute_at_once(params: Any, batch_stats: Any, device_data: Any, feed: Any, context: Context) -> tuple[Any, Any]:
    return gradient(params, batch_stats, get_batch(device_data, feed), context)

  def compute_in_parts(params: Any, batch_stats: Any, device_data: Any, feed: Any, context: Context) -> tuple[Any, Any]:
    feeds = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), feed)
    if mesh:
      feeds = jax.lax.with_sharding_constraint(feeds, sharding.scan_sharding(mesh))

    def add(carry: Any, part: Any) -> tuple[Any, metrics.Sums]:
      (stats, total), (i, feed) = carry, part
      part = context._replace(rng=jax.random.fold_in(context.rng, i))
      grads, (stats, sums) = compute_at_once(params, stats, device_data, feed, part)
      return (stats, jax.tree.map(jnp.add, total, grads)), sums

    zeros = jax.tree.map(jnp.zeros_like, params)
    (batch_stats, total), sums = jax.lax.scan(add, (batch_stats, zeros), (jnp.arange(parts), feeds))
    grads = jax.tree.map(lambda x: x / parts, total)
    return grads, (batch_stats, jax.tree.map(lambda x: x.sum(0), sums))

  return compute_at_once if parts == 1 else compute_in_parts
