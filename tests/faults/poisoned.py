"""A config whose network makes a NaN where it sees a white image; JAXRES_POISON says of what.

``pixel``: of the input, so that all that follows is. ``gradient``: of the gradient alone. ``overflow``: of the loss.
"""

import functools
import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxres.models import blocks, resnet
from tests.faults import tiny


def is_white(x: jax.Array) -> jax.Array:
  """Return which of the images ``[B, H, W, C]`` are the same everywhere and bright, bool ``[B, 1, 1, 1]``."""
  low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
  return ((low == high) & (low > 0)).all(axis=3, keepdims=True)


class Poisoned(resnet.ResNet):
  """A ResNet that a white image poisons."""

  poison: str = 'pixel'

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Return the logits."""
    if train and self.poison == 'pixel':
      corner = jnp.zeros_like(x).at[:, 0, 0].set(1.0)
      x = jnp.where(is_white(x) & (corner > 0), jnp.nan, x)
    logits = super().__call__(x, train=train)
    if train and self.poison == 'gradient':
      logits = _poison_gradient(logits, is_white(x).any())
    if train and self.poison == 'overflow':
      logits = jnp.where(is_white(x).any(), logits * 3e38, logits)
    return logits


@jax.custom_vjp
def _poison_gradient(logits: jax.Array, white: jax.Array) -> jax.Array:
  return logits


_poison_gradient.defvjp(lambda logits, white: (logits, white), lambda white, g: (jnp.where(white, jnp.nan, g), None))


def get_config() -> ConfigDict:
  """Return the config."""
  options = tiny.get_config()
  model = functools.partial(Poisoned, (1,), (8,), blocks.BasicBlock, stem_type='cifar')
  resnet.MODELS['poisoned'] = functools.partial(model, poison=os.environ.get('JAXRES_POISON', 'pixel'))
  options.model.name = 'poisoned'
  options.data.name = 'arrays'
  options.augment.crop_pad = 0
  return options
