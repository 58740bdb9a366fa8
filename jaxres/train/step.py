"""The training step: one jitted function from a state and a feed to the next state."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxres import data, losses, metrics
from jaxres.data import augment as augment_lib
from jaxres.models import ResNet
from jaxres.optim import freezing
from jaxres.runtime import sharding
from jaxres.runtime.compiler import compiler_options
from jaxres.state import TrainState, average
from jaxres.train.gradients import LossFn, make_gradient

TrainSteps = Callable[[TrainState, jax.Array, Any, Any], tuple[TrainState, metrics.Sums]]
Probe = Callable[[TrainState, jax.Array, Any, Any], tuple[jax.Array, dict[str, Any]]]


def make_loss(
  model: ResNet, loss: losses.Loss, augment: augment_lib.Augment, info: data.Info, frozen: Any = None
) -> LossFn:
  """Return ``(params, batch_stats, batch, rng) -> (loss, (batch_stats, sums))``: the mean loss of one batch.

  Args:
    model: whose logits are compared with the labels, in training mode.
    loss: logits float32 ``[B, K]`` and labels to float32 ``[B]``.
    augment: of ``augment.make``; where it mixes, labels become distributions, float32 ``[B, K]``.
    info: has the statistics that images are normalised with.
    frozen: a tree of bools like the parameters: those that have no gradient; None where all have one.
  """

  def loss_fn(
    params: Any, batch_stats: Any, batch: data.Batch, rng: jax.Array
  ) -> tuple[jax.Array, tuple[Any, metrics.Sums]]:
    images, label = augment.batch(rng, batch['image'], batch['label'], len(info.class_names))
    images = augment_lib.normalize(images, info.mean, info.std)
    params = params if frozen is None else freezing.pinned(params, frozen)
    variables = {'params': params, 'batch_stats': batch_stats}
    logits, updates = model.apply(variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': rng})
    each = loss(logits, label)
    return each.mean(), (updates['batch_stats'], metrics.sums(each, logits, label))

  return loss_fn


def make_train_steps(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  fetch: Callable[..., data.Batch],
  mesh: Mesh,
  *,
  accumulate: int = 1,
  ema: float = 0.0,
  later: Sequence[tuple[int, LossFn]] = (),
  per_device_bn: bool = False,
  shardings: Any = None,
) -> TrainSteps:
  """Return the jitted function that takes some steps: ``(state, key, constants, feeds)`` to the next state and sums.

  The first axis of ``feeds`` is that of the steps, K; more than one are a ``lax.scan``. The sums of metrics are those
  over all of them. Each K is a program of its own; the key is an argument, so that every seed has the same.

  A step whose loss, gradient or batch statistics are not finite is not taken, nor is any after it: ``halt_unless``.

  The state is donated; each feed is split over the devices. Under ``jit`` the BatchNorm statistics and the gradient are
  those of the whole batch, whatever the number of devices.

  Args:
    loss_fn: ``(params, batch_stats, batch, rng) -> (loss, (batch_stats, sums))``.
    tx: the optimiser.
    fetch: ``(constants, feed)`` to the batch: of a pipeline.
    mesh: of ``sharding.make_mesh``.
    accumulate: parts that a batch is split into, see ``accumulated``.
    ema: decay of the moving average, where the state has one.
    later: other losses that take over, each with the step from which on it does.
    per_device_bn: see ``per_device``.
    shardings: of the state, of ``state.shardings``; None holds it whole on every device.
  """
  gradient = make_gradient(loss_fn, fetch, mesh, accumulate, later, per_device_bn)

  def train_step(before: TrainState, key: jax.Array, constants: Any, feed: Any) -> tuple[TrainState, metrics.Sums]:
    rng = step_key(key, before.step)
    grads, (batch_stats, sums) = gradient(before.step, before.params, before.batch_stats, constants, feed, rng)
    updates, opt_state = tx.update(grads, before.opt_state, before.params)
    params = optax.apply_updates(before.params, updates)
    after = TrainState(before.step + 1, params, batch_stats, opt_state, before.ema)
    return halt_unless(all_finite((sums['loss'], grads, batch_stats)), before, average(after, ema), sums)

  def train_steps(train_state: TrainState, key: jax.Array, constants: Any, feeds: Any) -> tuple[TrainState, Any]:
    one = lambda train_state, feed: train_step(train_state, key, constants, feed)
    if len(jax.tree.leaves(feeds)[0]) == 1:
      return one(train_state, jax.tree.map(lambda x: x[0], feeds))
    train_state, sums = jax.lax.scan(one, train_state, feeds)
    return train_state, jax.tree.map(lambda x: x.sum(0), sums)

  whole = sharding.replicated(mesh)
  shardings = shardings or whole
  return jax.jit(
    train_steps,
    in_shardings=(shardings, whole, whole, sharding.over_steps(mesh)),
    out_shardings=(shardings, whole),
    donate_argnums=0,
    compiler_options=compiler_options(),
  )


def make_probe(
  loss_fn: LossFn,
  fetch: Callable[..., data.Batch],
  mesh: Mesh,
  *,
  accumulate: int = 1,
  later: Sequence[tuple[int, LossFn]] = (),
  per_device_bn: bool = False,
  shardings: Any = None,
) -> Probe:
  """Return the jitted function that looks at a step and does not take it; the arguments are ``make_train_steps``'s.

  It takes the same as that, for one step, to the mean loss and to trees of bools, which arrays are finite: those of the
  state before the step, ``params``, then what the step makes, ``batch_stats`` and ``gradients``.
  """
  gradient = make_gradient(loss_fn, fetch, mesh, accumulate, later, per_device_bn)

  def probe(train_state: TrainState, key: jax.Array, constants: Any, feeds: Any) -> Any:
    number, params, batch_stats = train_state.step, train_state.params, train_state.batch_stats
    feed = jax.tree.map(lambda x: x[0], feeds)
    grads, (stats, sums) = gradient(number, params, batch_stats, constants, feed, step_key(key, number))
    finite = lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
    return sums['loss'] / sums['count'], {
      name: finite(tree) for name, tree in (('params', params), ('batch_stats', stats), ('gradients', grads))
    }

  whole = sharding.replicated(mesh)
  return jax.jit(
    probe,
    in_shardings=(shardings or whole, whole, whole, sharding.over_steps(mesh)),
    out_shardings=whole,
    compiler_options=compiler_options(),
  )


def all_finite(tree: Any) -> jax.Array:
  """Return whether no array of ``tree`` has a NaN or an infinity, a bool scalar."""
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def halt_unless(
  good: jax.Array, before: TrainState, after: TrainState, sums: metrics.Sums
) -> tuple[TrainState, metrics.Sums]:
  """Return ``after`` and ``sums``, with ``bad`` of 0, where ``good``; else the state ``before``, halted, and no sums.

  A halted state has the negative step ``-1 - step`` and no later step moves it, so that, whatever is in flight when
  the host hears of it, all else is as it was before the bad step, to the bit. ``bad`` is 1 for each step not taken.
  """
  good &= before.step >= 0
  kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
  halted = jnp.where(good, after.step, jnp.minimum(before.step, -1 - before.step))
  sums = {name: jnp.where(good, value, 0.0) for name, value in sums.items()}
  return dataclasses.replace(kept, step=halted), sums | {'bad': 1.0 - good}


def step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
  """Return the key of the augmentation and the dropout at ``step``, given that of the training: ``key(seed)``."""
  return jax.random.fold_in(key, step)
