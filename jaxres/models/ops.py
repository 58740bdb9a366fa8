"""Convolution and normalization as functions of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ModuleDef = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]
DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


def torch_padding(kernel: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """Return the padding ``torch.nn.Conv2d(padding=kernel // 2)`` uses, as ``((top, bottom), (left, right))``."""
  return ((kernel // 2, kernel // 2),) * 2


def conv(x: jax.Array, kernel: jax.Array, strides: int = 1, groups: int = 1) -> jax.Array:
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
    kernel,
    window_strides=(strides, strides),
    padding=torch_padding(len(kernel)),
    dimension_numbers=DIMENSIONS,
    feature_group_count=groups,
  )


def align_channels(vector: jax.Array, ndim: int) -> jax.Array:
  """Return ``vector``, ``[C]``, with ``ndim`` axes, the last of which is that of the channels."""
  return jnp.expand_dims(vector, range(ndim - 1))


def normalize(
  x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
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


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return mean and biased variance over all but the last axis, float32 ``[C]``."""
  x = x.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes)
  return mean, jnp.maximum(0.0, jnp.square(x).mean(axes) - jnp.square(mean))


def update_running(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
  """Return ``momentum * old + (1 - momentum) * new``: ``new`` itself, whatever ``old`` is, where the momentum is 0."""
  return momentum * old + (1 - momentum) * new if momentum else new


def batch_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
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
