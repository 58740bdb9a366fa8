"""The training state: everything that a checkpoint contains."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxres.models import ResNet
from jaxres.runtime import sharding
from jaxres.runtime.compiler import jit


@flax.struct.dataclass
class TrainState:
  """What a step reads and writes.

  Attributes:
    step: steps taken, int32 scalar.
    params: float32 parameters by name.
    batch_stats: float32 running mean and biased variance of each BatchNorm.
    opt_state: state of the optimizer.
    ema: moving average of ``variables``, a tree like it; None where none is kept.
    halted: bool scalar: a step was not finite, and no later step is taken. It is not saved.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  ema: Any = None
  halted: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros((), bool))

  @property
  def variables(self) -> dict[str, Any]:
    """The variables of the model: what ``model.apply`` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  @property
  def saved_fields(self) -> dict[str, Any]:
    """The saved attributes that are not None, by name, so that a file omits what is not used."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != 'halted'}
    return {name: value for name, value in fields.items() if value is not None}


def init_variables(model: ResNet, image_shape: tuple[int, int, int], key: jax.Array) -> dict[str, Any]:
  """Return fresh variables of ``model``. Jit-able.

  Args:
    model: the network.
    image_shape: ``(H, W, C)``.
    key: a PRNG key.

  Returns:
    ``params`` and ``batch_stats``, float32.
  """
  return dict(model.init(key, jnp.zeros((1, *image_shape)), train=False))


def create(variables: dict[str, Any], tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
  """Return the state at step 0 of a training that starts from ``variables``.

  Args:
    variables: ``params`` and ``batch_stats``.
    tx: of ``optim.make``.
    ema: keep a moving average of the variables.
  """
  params, batch_stats = variables['params'], variables['batch_stats']
  train_state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params))
  return dataclasses.replace(train_state, ema=jax.tree.map(jnp.copy, train_state.variables)) if ema else train_state


def shardings(train_state: TrainState, mesh: Mesh, *, shard_optimizer: bool = False) -> TrainState:
  """Return where the arrays of a state go, as a state of shardings: a full copy on every device by default.

  Args:
    train_state: the state, or its shapes.
    mesh: of ``sharding.make_mesh``.
    shard_optimizer: each device has only its part of the optimizer's state and of the moving average, and computes its
      update (ZeRO stage 1, Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054).
  """
  replicated = jax.tree.map(lambda _: sharding.replicated_sharding(mesh), train_state)
  if not shard_optimizer:
    return replicated
  split = lambda tree: jax.tree.map(lambda x: sharding.largest_axis_sharding(x.shape, mesh), tree)
  return dataclasses.replace(replicated, opt_state=split(train_state.opt_state), ema=split(train_state.ema))


def start_from(train_state: TrainState, variables: dict[str, Any]) -> TrainState:
  """Return a state at step 0 with copies of ``variables``.

  Args:
    train_state: the state whose shardings and optimizer state are kept.
    variables: ``params`` and ``batch_stats``, with the shapes of those of ``train_state``.
  """

  def copy_to(like: Any) -> Any:
    copy_tree = jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=jax.tree.map(lambda x: x.sharding, like))
    return copy_tree({key: variables[key] for key in like})

  ema = None if train_state.ema is None else copy_to(train_state.ema)
  return dataclasses.replace(train_state, **copy_to(train_state.variables), ema=ema)


def update_ema(train_state: TrainState, decay: float) -> TrainState:
  """Return the state with its moving average updated for its step ``t``: parameters and batch statistics.

  The average is ``d * ema + (1 - d) * variables`` with ``d = min(decay, (1 + t) / (10 + t))``, so that it forgets the
  initial values fast, as ``torch_ema`` and TensorFlow's ``ExponentialMovingAverage`` do. A state without one is
  returned as it is.

  Args:
    train_state: after its step.
    decay: ``d`` at late steps.
  """
  if train_state.ema is None:
    return train_state
  step = jnp.asarray(train_state.step, jnp.float32)
  share = jnp.maximum(1.0 - decay, 9.0 / (10.0 + step))  # 1 - d, with no cancellation
  move = lambda old, new: old + share * (new - old)
  return dataclasses.replace(train_state, ema=jax.tree.map(move, train_state.ema, train_state.variables))
