"""The training step: one jitted function from a state and a feed to the next state."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxres import data, metrics
from jaxres.runtime import sharding
from jaxres.runtime.compiler import compiler_options
from jaxres.state import TrainState, update_ema
from jaxres.train.gradients import Context, LossFn, make_gradient


class Hyperparameters(NamedTuple):
  """Numbers that a compiled step takes as an argument, so that another value compiles nothing again.

  Attributes:
    lr_scale: times the learning rate of the schedule, float32 scalar; a rollback halves it.
  """

  lr_scale: jax.Array | np.float32 = np.float32(1.0)


MakeTx = Callable[[Hyperparameters], optax.GradientTransformation]
TrainSteps = Callable[..., tuple[TrainState, metrics.Sums]]
Probe = Callable[..., tuple[jax.Array, dict[str, Any]]]


def make_train_steps(
  loss_fn: LossFn,
  make_tx: MakeTx,
  get_batch: Callable[..., data.Batch],
  mesh: Mesh,
  *,
  accumulate: int = 1,
  ema: float = 0.0,
  later: Sequence[tuple[int, LossFn]] = (),
  per_device_bn: bool = False,
  shardings: Any = None,
) -> TrainSteps:
  """Return the jitted ``(state, key, constants, feeds, hyperparameters, extras) -> (state, sums)``.

  The first axis of ``feeds`` is that of the steps, K; more than one are a ``lax.scan``. The sums of metrics are those
  over all of them. Each K is a separate program; the key is an argument, so that every seed has the same program, and
  so are the hyperparameters.

  A step whose loss, gradient or batch statistics are not finite is not taken, nor is any after it: ``keep_if_finite``.

  The state is donated; each feed is split over the devices. Under ``jit`` the BatchNorm statistics and the gradient are
  those of the batch over all devices, whatever their number.

  Args:
    loss_fn: of ``gradients.make_loss``.
    make_tx: hyperparameters, whose numbers may be traced, to the optimizer.
    get_batch: ``(constants, feed)`` to the batch: of a pipeline.
    mesh: of ``sharding.make_mesh``.
    accumulate: parts that a batch is split into, see ``gradients.accumulate_gradients``.
    ema: decay of the moving average, where the state has one.
    later: other losses that take over, each with the step from which on it does.
    per_device_bn: see ``gradients.per_device_gradients``.
    shardings: of the state, of ``state.shardings``; None puts a copy on every device.
  """
  gradient = make_gradient(loss_fn, get_batch, mesh, accumulate, later, per_device_bn)

  def train_steps(
    train_state: TrainState, key: jax.Array, device_data: Any, feeds: Any, hyperparameters: Hyperparameters, extras: Any
  ) -> tuple[TrainState, metrics.Sums]:
    tx = make_tx(hyperparameters)

    def train_step(before: TrainState, feed: Any) -> tuple[TrainState, metrics.Sums]:
      context = Context(step_key(key, before.step), before.step, extras)
      grads, (batch_stats, sums) = gradient(before.params, before.batch_stats, device_data, feed, context)
      updates, opt_state = tx.update(grads, before.opt_state, before.params)
      params = optax.apply_updates(before.params, updates)
      after = TrainState(before.step + 1, params, batch_stats, opt_state, before.ema, before.halted)
      return keep_if_finite(all_finite((sums['loss'], grads, batch_stats)), before, update_ema(after, ema), sums)

    if len(jax.tree.leaves(feeds)[0]) == 1:
      return train_step(train_state, jax.tree.map(lambda x: x[0], feeds))
    train_state, sums = jax.lax.scan(train_step, train_state, feeds)
    return train_state, jax.tree.map(lambda x: x.sum(0), sums)

  replicated = sharding.replicated_sharding(mesh)
  shardings = shardings or replicated
  return jax.jit(
    train_steps,
    in_shardings=(shardings, replicated, replicated, sharding.scan_sharding(mesh), replicated, replicated),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
    compiler_options=compiler_options(),
  )


def make_probe(
  loss_fn: LossFn,
  get_batch: Callable[..., data.Batch],
  mesh: Mesh,
  *,
  accumulate: int = 1,
  later: Sequence[tuple[int, LossFn]] = (),
  per_device_bn: bool = False,
  shardings: Any = None,
) -> Probe:
  """Return the jitted ``(state, key, constants, feeds, extras) -> (loss, finite)``, which looks at a step.

  It does not take the step. ``feeds`` are of one step; ``loss`` is the mean over the batch; ``finite`` are trees of
  bools, which arrays are: those of the state before the step, ``params``, then what the step makes, ``batch_stats`` and
  ``gradients``. The arguments are those of ``make_train_steps``.
  """
  gradient = make_gradient(loss_fn, get_batch, mesh, accumulate, later, per_device_bn)

  def probe(train_state: TrainState, key: jax.Array, device_data: Any, feeds: Any, extras: Any) -> Any:
    context = Context(step_key(key, train_state.step), train_state.step, extras)
    params, batch_stats = train_state.params, train_state.batch_stats
    feed = jax.tree.map(lambda x: x[0], feeds)
    grads, (stats, sums) = gradient(params, batch_stats, device_data, feed, context)
    finite = lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)
    return sums['loss'] / sums['count'], {
      name: finite(tree) for name, tree in (('params', params), ('batch_stats', stats), ('gradients', grads))
    }

  replicated = sharding.replicated_sharding(mesh)
  return jax.jit(
    probe,
    in_shardings=(shardings or replicated, replicated, replicated, sharding.scan_sharding(mesh), replicated),
    out_shardings=replicated,
    compiler_options=compiler_options(),
  )


def all_finite(tree: Any) -> jax.Array:
  """Return whether no array of ``tree`` has a NaN or an infinity, a bool scalar."""
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def keep_if_finite(
  good: jax.Array, before: TrainState, after: TrainState, sums: metrics.Sums
) -> tuple[TrainState, metrics.Sums]:
  """Return ``after`` and ``sums``, with ``bad`` of 0, where ``good``; else the state ``before``, halted, and no sums.

  No later step moves a halted state, so that, whatever is in flight when the host hears of it, everything is as it was
  before the bad step, to the bit. ``bad`` is 1 for each step not taken.
  """
  good &= ~before.halted
  kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
  sums = {name: jnp.where(good, value, 0.0) for name, value in sums.items()}
  return dataclasses.replace(kept, halted=~good), sums | {'bad': 1.0 - good}


def step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
  """Return the key of the augmentation and the dropout at ``step``, given that of the training: ``key(seed)``."""
  return jax.random.fold_in(key, step)
