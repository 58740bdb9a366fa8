"""Convolution and normalization as functions of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ModuleDef = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]
Leaf = jax.Array | np.ndarray  # of the variables: users may hand in NumPy's
DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


def torch_padding(kernel: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """Return the padding ``torch.nn.Conv2d(padding=kernel // 2)`` uses, as ``((top, bottom), (left, right))``."""
  return ((kernel // 2, kernel // 2),) * 2


def conv(
  x: Float[Array, 'B H W C'], kernel: Float[Leaf, 'k k c D'], strides: int = 1, groups: int = 1
) -> Float[Array, 'B h w D']:
  """Return the convolution, padded by ``K // 2`` on each side.

  Args:
    x: float ``[B, H, W, C]``.
    kernel: float ``[K, K, C / groups, C']``.
    strides: in both directions.
    groups: of channels that do not mix.

  Returns:
    float ``[B, ceil(H / strides), ceil(W / strides), C']``.
  """
  return jax.lax.conv_general_dilated(
    x,
    jnp.asarray(kernel),
    window_strides=(strides, strides),
    padding=torch_padding(len(kernel)),
    dimension_numbers=DIMENSIONS,
    feature_group_count=groups,
  )


def align_channels(vector: Float[Leaf, ' C'], ndim: int) -> Float[Array, '*ones C']:
  """Return ``vector``, ``[C]``, with ``ndim`` axes, the last of which is that of the channels."""
  return jnp.expand_dims(vector, range(ndim - 1))


def normalize(
  x: Float[Array, '*B C'],
  mean: Float[Leaf, ' C'],
  var: Float[Leaf, ' C'],
  scale: Float[Leaf, ' C'],
  bias: Float[Leaf, ' C'],
  epsilon: float,
) -> Float[Array, '*B C']:
  """Return ``(x - mean) * scale / sqrt(var + epsilon) + bias``, float32.

  Args:
    x: float ``[..., C]``.
    mean: float32 ``[C]``.
    var: float32 ``[C]``.
    scale: float32 ``[C]``.
    bias: float32 ``[C]``.
    epsilon: added to the variance.
  """
  factor = scale * jax.lax.rsqrt(var + epsilon)
  mean, factor, bias = (align_channels(each, x.ndim) for each in (mean, factor, bias))
  return (x.astype(jnp.float32) - mean) * factor + bias


def moments(x: Float[Array, '*B C']) -> tuple[Float[Array, ' C'], Float[Array, ' C']]:
  """Return mean and biased variance over all but the last axis, float32 ``[C]``."""
  x = x.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes)
  return mean, jnp.maximum(0.0, jnp.square(x).mean(axes) - jnp.square(mean))


def update_running(old: Float[Leaf, ' C'], new: Float[Array, ' C'], momentum: float) -> Float[Array, ' C']:
  """Return ``momentum * old + (1 - momentum) * new``: ``new`` itself, whatever ``old`` is, where the momentum is 0."""
  return momentum * jnp.asarray(old) + (1 - momentum) * new if momentum else new


def batch_norm(
  x: Float[Array, '*B C'], scale: Float[Leaf, ' C'], bias: Float[Leaf, ' C'], epsilon: float
) -> tuple[Float[Array, '*B C'], Float[Array, ' C'], Float[Array, ' C']]:
  """Return ``x`` normalized by its mean and variance, and these two.

  Args:
    x: float ``[..., C]``.
    scale: float32 ``[C]``.
    bias: float32 ``[C]``.
    epsilon: added to the variance.

  Returns:
    float32 ``[..., C]``, ``[C]`` and ``[C]``.
  """
  mean, var = moments(x)
  return normalize(x, mean, var, scale, bias, epsilon), mean, var
