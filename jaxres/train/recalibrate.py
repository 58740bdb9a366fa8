"""The running statistics of BatchNorm, estimated again for the weights as they are."""

import dataclasses
import itertools
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


def make_recalibrate(model: ResNet, info: Info, get_batch: Callable[..., Any], mesh: Mesh) -> Recalibrate:
  """Return ``(variables, constants, feeds)`` to the variables with other ``batch_stats``.

  Those are the means over the batches of their means and biased variances, each batch seen in training mode without
  augmentation: a cumulative average, as torch's BatchNorm keeps with ``momentum=None`` (there of unbiased ones). What
  is frozen in ``model`` stays as it is, to the bit.

  Args:
    model: the network; its ``frozen_norms`` are left alone.
    info: has the statistics that images are normalized with.
    get_batch: ``(constants, feed)`` to the batch: of the training pipeline.
    mesh: of ``sharding.make_mesh``.
  """

  def add(params: Any, batch_stats: Any, share: float, device_data: Any, feed: Any) -> Any:
    network = model.clone(bn_momentum=0.0, dropout=0.0, stochastic_depth=0.0)  # a step's statistics are its batch's
    images = normalize(get_batch(device_data, feed)['image'], info.mean, info.std)
    variables = {'params': params, 'batch_stats': batch_stats}
    _, updates = network.apply(variables, images, train=True, mutable=['batch_stats'])
    average = lambda mean, new: jnp.where(share < 1.0, mean + share * (new - mean), new)  # equals stay as they are
    return jax.tree.map(average, batch_stats, updates['batch_stats'])

  replicated, split = sharding.replicated_sharding(mesh), sharding.batch_sharding(mesh)
  add = jax.jit(
    add,
    in_shardings=(replicated, replicated, replicated, replicated, split),
    out_shardings=replicated,
    compiler_options=compiler_options(),
  )

  def recalibrate(variables: Any, device_data: Any, feeds: Iterable[Any]) -> Any:
    batch_stats = variables['batch_stats']
    for number, step_feed in enumerate(feeds, 1):
      feed = sharding.make_global_arrays(step_feed, split)
      batch_stats = add(variables['params'], batch_stats, 1.0 / number, device_data, feed)
    return variables | {'batch_stats': batch_stats}

  return recalibrate


def recalibrate_state(
  train_state: TrainState,
  recalibrate: Recalibrate,
  pipeline: Pipeline,
  batches: int,
  stop: Callable[[], bool] = lambda: False,
) -> TrainState:
  """Return the state with the statistics of its weights, and of their average, of the first ``batches`` batches.

  ``stop`` is asked before each batch; where it says yes no more are looked at, and the result is of no use.
  """
  feeds = lambda: itertools.takewhile(lambda _: not stop(), pipeline.step_inputs(0, batches))
  again = lambda variables: recalibrate(variables, pipeline.device_data, feeds())
  stats, ema = again(train_state.variables)['batch_stats'], train_state.ema
  if ema:
    ema = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), again(sharding.gather(ema)), ema)
  return dataclasses.replace(train_state, batch_stats=stats, ema=ema)
