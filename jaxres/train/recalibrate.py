"""The running statistics of BatchNorm, estimated anew for the weights as they are."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxres.data import Info, Pipeline
from jaxres.data.augment import normalize
from jaxres.models import ResNet
from jaxres.runtime import sharding
from jaxres.runtime.compiler import compiler_options
from jaxres.state import TrainState

Recalibrate = Callable[[Any, Any, Iterable[Any]], Any]


def make_recalibrate(model: ResNet, info: Info, fetch: Callable[..., Any], mesh: Mesh) -> Recalibrate:
  """Return ``(variables, constants, feeds)`` to the variables with other ``batch_stats``.

  Those are the means over the batches of their means and biased variances, each batch seen in training mode without
  augmentation: a cumulative average, as torch's BatchNorm keeps with ``momentum=None`` (there of unbiased ones). What
  is frozen in ``model`` stays as it is, to the bit.

  Args:
    model: the network; its ``frozen_norms`` are left alone.
    info: has the statistics that images are normalised with.
    fetch: ``(constants, feed)`` to the batch: of the training pipeline.
    mesh: of ``sharding.make_mesh``.
  """

  def add(params: Any, batch_stats: Any, share: float, constants: Any, feed: Any) -> Any:
    network = model.clone(bn_momentum=0.0, dropout=0.0, stochastic_depth=0.0)  # a step's statistics are its batch's
    images = normalize(fetch(constants, feed)['image'], info.mean, info.std)
    variables = {'params': params, 'batch_stats': batch_stats}
    _, updates = network.apply(variables, images, train=True, mutable=['batch_stats'])
    average = lambda mean, new: jnp.where(share < 1.0, mean + share * (new - mean), new)  # equals stay as they are
    return jax.tree.map(average, batch_stats, updates['batch_stats'])

  whole, split = sharding.replicated(mesh), sharding.over_batch(mesh)
  add = jax.jit(
    add,
    in_shardings=(whole, whole, whole, whole, split),
    out_shardings=whole,
    compiler_options=compiler_options(),
  )

  def recalibrate(variables: Any, constants: Any, feeds: Iterable[Any]) -> Any:
    batch_stats = variables['batch_stats']
    for number, own in enumerate(feeds, 1):
      feed = sharding.assembled(own, split)
      batch_stats = add(variables['params'], batch_stats, 1.0 / number, constants, feed)
    return variables | {'batch_stats': batch_stats}

  return recalibrate


def recalibrated(train_state: TrainState, recalibrate: Recalibrate, pipeline: Pipeline, batches: int) -> TrainState:
  """Return the state with the statistics of its weights, and of their average, of the first ``batches`` batches."""
  again = lambda variables: recalibrate(variables, pipeline.constants, pipeline.train_feeds(0, batches))
  stats, ema = again(train_state.variables)['batch_stats'], train_state.ema
  if ema:
    ema = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), again(sharding.gathered(ema)), ema)
  return dataclasses.replace(train_state, batch_stats=stats, ema=ema)
