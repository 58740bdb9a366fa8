"""The state of a training: everything that a checkpoint must hold."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxres.models import ResNet


@flax.struct.dataclass
class TrainState:
  """What a step reads and writes.

  Attributes:
    step: steps taken, int32 scalar.
    params: float32 parameters by name.
    batch_stats: float32 running mean and biased variance of each BatchNorm.
    opt_state: of the optimiser.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState

  @property
  def variables(self) -> dict[str, Any]:
    """The variables of the model: what ``model.apply`` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


def init_variables(model: ResNet, image_shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
  """Return fresh variables of ``model`` for images ``[H, W, C]``. Jit-able; a pure function of ``seed``."""
  return dict(model.init(jax.random.key(seed), jnp.zeros((1, *image_shape)), train=False))


def create(variables: dict[str, Any], tx: optax.GradientTransformation) -> TrainState:
  """Return the state at step 0 of a training that starts from ``variables``."""
  params = variables['params']
  return TrainState(jnp.zeros((), jnp.int32), params, variables['batch_stats'], tx.init(params))
