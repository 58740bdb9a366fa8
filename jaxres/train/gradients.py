"""The gradient of a batch: whole, in parts, device by device."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxres import data, metrics
from jaxres.runtime import sharding

LossFn = Callable[[Any, Any, data.Batch, jax.Array], tuple[jax.Array, tuple[Any, metrics.Sums]]]


def make_gradient(
  loss_fn: LossFn,
  fetch: Callable[..., data.Batch],
  mesh: Mesh,
  accumulate: int,
  later: Sequence[tuple[int, LossFn]],
  per_device_bn: bool,
) -> Callable[..., Any]:
  """Return ``(step, params, batch_stats, constants, feed, rng) -> (grads, (batch_stats, sums))``; see the step."""
  make = per_device if per_device_bn else accumulated
  losses_of = [loss_fn, *(loss_fn for _, loss_fn in later)]
  return by_step([make(f, fetch, accumulate, mesh) for f in losses_of], [begin for begin, _ in later])


def by_step(functions: Sequence[Callable[..., Any]], begins: Sequence[int]) -> Callable[..., Any]:
  """Return ``(step, *args)`` to what the first of ``functions`` returns, or the last that begins at or before ``step``.

  Args:
    functions: of the same ``args``, with results alike.
    begins: rising steps, at which the second and those after it begin.
  """
  if not begins:
    return lambda step, *args: functions[0](*args)
  return lambda step, *args: jax.lax.switch((step >= jnp.array(begins)).sum(), functions, *args)


def per_device(loss_fn: LossFn, fetch: Callable[..., data.Batch], parts: int, mesh: Mesh) -> Callable[..., Any]:
  """Return ``accumulated`` done by each device alone, on its part of the batch: with BatchNorm statistics of its own.

  The gradients and the running statistics are averaged, and the sums of metrics added up, in one all-reduce; there is
  no other communication. The augmentation and the dropout of device ``d`` have the key ``fold_in(rng, d)``, and mixing
  stays within a device.
  """
  gradient = accumulated(loss_fn, fetch, parts)

  def own(params: Any, batch_stats: Any, constants: Any, feed: Any, rng: jax.Array) -> tuple[Any, Any]:
    rng = jax.random.fold_in(rng, jax.lax.axis_index(sharding.AXIS))
    grads, (stats, sums) = gradient(params, batch_stats, constants, feed, rng)
    means = jax.tree.map(lambda x: x / mesh.size, (grads, stats))
    (grads, stats), sums = jax.lax.psum((means, sums), sharding.AXIS)
    return grads, (stats, sums)

  whole, split = PartitionSpec(), PartitionSpec(sharding.AXIS)
  return jax.shard_map(  # nothing varies that leaves it, which the check cannot see through hand-written gradients
    own, mesh=mesh, in_specs=(whole, whole, whole, split, whole), out_specs=whole, check_vma=False
  )


def accumulated(
  loss_fn: LossFn, fetch: Callable[..., data.Batch], parts: int, mesh: Mesh | None = None
) -> Callable[..., Any]:
  """Return ``(params, batch_stats, constants, feed, rng) -> (grads, (batch_stats, sums))`` over a batch in ``parts``.

  The gradient is the mean of those of the parts. The batch statistics pass from part to part, and part ``i``, which
  has examples ``i, i + parts, ...`` so that no example leaves its device, has the key ``fold_in(rng, i)``.

  Args:
    loss_fn: as of ``make_train_steps``.
    fetch: the same.
    parts: how many.
    mesh: what the batch is split over; None where it is of one device.
  """
  gradient = jax.grad(loss_fn, has_aux=True)
  if parts == 1:
    return lambda params, stats, constants, feed, rng: gradient(params, stats, fetch(constants, feed), rng)

  def whole(params: Any, batch_stats: Any, constants: Any, feed: Any, rng: jax.Array) -> tuple[Any, Any]:
    feeds = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), feed)
    if mesh:
      feeds = jax.lax.with_sharding_constraint(feeds, sharding.over_steps(mesh))

    def add(carry: Any, part: Any) -> tuple[Any, metrics.Sums]:
      (stats, total), (i, feed) = carry, part
      grads, (stats, sums) = gradient(params, stats, fetch(constants, feed), jax.random.fold_in(rng, i))
      return (stats, jax.tree.map(jnp.add, total, grads)), sums

    begin = batch_stats, jax.tree.map(jnp.zeros_like, params)
    (batch_stats, total), sums = jax.lax.scan(add, begin, (jnp.arange(parts), feeds))
    grads = jax.tree.map(lambda x: x / parts, total)
    return grads, (batch_stats, jax.tree.map(lambda x: x.sum(0), sums))

  return whole
