"""Convolution and BatchNorm, with hand-written gradients where XLA:CPU's own are slow.

Each hand-written form has the values and the gradients of the plain one; ``backend.wants_cpu_forms`` says where it is
used, docs/performance.md what it gains. Only reverse mode knows it, so evaluation takes the plain forms.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxres.backend import materialize, wants_cpu_forms

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')

conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015; torchvision


def torch_padding(kernel: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """Return the padding ``torch.nn.Conv2d(padding=kernel // 2)`` uses, as ``((top, bottom), (left, right))``."""
  return ((kernel // 2, kernel // 2),) * 2


class Conv(nn.Module):
  """Convolution; its padding is torch's ``kernel_size // 2``.

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / strides), ceil(W / strides), channels]`` of dtype ``dtype``; its parameter
  ``kernel`` is float32 ``[kernel_size, kernel_size, C / groups, channels]``, ``bias``, where there is one,
  ``[channels]``.

  Attributes:
    channels: of the result.
    kernel_size: pixels a side.
    strides: in both directions.
    groups: of channels that do not mix.
    use_bias: add a bias.
    kernel_init: of the kernel.
    dtype: of the arithmetic.
    train: the gradient will be asked for, by reverse mode.
  """

  channels: int
  kernel_size: int
  strides: int = 1
  groups: int = 1
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer = conv_init
  dtype: Any = jnp.float32
  train: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.channels)
    kernel = self.param('kernel', self.kernel_init, shape).astype(self.dtype)
    x = materialize(x.astype(self.dtype), kernel)
    if self.train and self.groups == 1 and wants_cpu_forms():
      x = conv_cpu(x, kernel, self.strides)
    else:
      x = conv(x, kernel, self.strides, self.groups)
    if not self.use_bias:
      return x
    return x + self.param('bias', nn.initializers.zeros, (self.channels,)).astype(self.dtype)


class BatchNorm(nn.Module):
  """Batch normalisation over all but the last axis (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

  Parameters and running statistics have Flax's names, shapes and meaning: ``scale`` and ``bias``, ``mean`` and the
  biased variance ``var`` in ``batch_stats``; statistics are float32, the variance ``E[x^2] - E[x]^2`` in one pass.

  Attributes:
    train: normalise by the batch and move the running statistics, or normalise by these.
    frozen: paths, such as ``stem/bn``, of those that normalise by them in training too, and leave them as they are.
    momentum: of the running statistics: the share of the old value.
    epsilon: added to the variance.
    dtype: of the result.
    use_scale: have a scale; 1 otherwise.
    scale_init: of the scale.
  """

  train: bool
  frozen: tuple[str, ...] = ()
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  use_scale: bool = True
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = x.shape[-1:]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var = self.variable('batch_stats', 'var', jnp.ones, shape)
    scale = self.param('scale', self.scale_init, shape) if self.use_scale else jnp.ones(shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    if not self.train or '/'.join(self.path) in self.frozen:
      return normalize(x, mean.value, var.value, scale, bias, self.epsilon).astype(self.dtype)
    form = batch_norm_cpu if wants_cpu_forms() else batch_norm
    y, batch_mean, batch_var = form(x, scale, bias, self.epsilon)
    if not self.is_initializing():
      mean.value = moved(mean.value, batch_mean, self.momentum)
      var.value = moved(var.value, batch_var, self.momentum)
    return y.astype(self.dtype)


def conv(x: jax.Array, kernel: jax.Array, strides: int = 1, groups: int = 1) -> jax.Array:
  """Return the convolution of ``[B, H, W, C]`` with ``[K, K, C / groups, C']``, padded by ``K // 2``."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(strides, strides),
    padding=torch_padding(len(kernel)),
    dimension_numbers=DIMENSIONS,
    feature_group_count=groups,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_cpu(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
  """Return ``conv``, whose gradients are convolutions that XLA:CPU hands to its fast kernel, in a loop too."""
  return conv(x, kernel, strides)


def _conv_forward(x: jax.Array, kernel: jax.Array, strides: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return conv(x, kernel, strides), (x, kernel)


def _conv_backward(strides: int, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = kept
  return input_gradient(g, kernel, strides, x.shape), kernel_gradient(x, g, strides, len(kernel))


conv_cpu.defvjp(_conv_forward, _conv_backward)


def kernel_gradient(x: jax.Array, g: jax.Array, strides: int, size: int) -> jax.Array:
  """Return the gradient of the kernel, ``[size, size, C, C']``: a convolution over the batch.

  ``x`` is transposed to ``[C, H, W, B]`` and ``g`` to ``[H', W', B, C']``. XLA leaves that to the dimension numbers of
  the convolution, which its CPU compiler makes canonical at the top level of a program, and not inside a loop: there
  it takes more than a hundred times as long.
  """
  padding = [
    (size // 2, size - size // 2 - width + (out - 1) * strides)
    for width, out in zip(x.shape[1:3], g.shape[1:3], strict=True)
  ]
  found = jax.lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    window_strides=(1, 1),
    padding=padding,
    rhs_dilation=(strides, strides),
    dimension_numbers=DIMENSIONS,
  )
  return found.transpose(1, 2, 0, 3)


def input_gradient(g: jax.Array, kernel: jax.Array, strides: int, shape: tuple[int, ...]) -> jax.Array:
  """Return the gradient of the input, ``shape``.

  Of a strided convolution XLA fills ``g`` up with zeros first; here each of the ``strides ** 2`` phases of the result
  is a convolution with the taps of the kernel that meet no zero.
  """
  phases = [[_phase(g, kernel, strides, row, column) for column in range(strides)] for row in range(strides)]
  if strides == 1:
    return phases[0][0]
  whole = jnp.stack([jnp.stack(line, axis=3) for line in phases], axis=2)  # [B, H', s, W', s, C]
  batch, height, _, width, *_ = whole.shape
  return whole.reshape(batch, height * strides, width * strides, -1)[:, : shape[1], : shape[2]]


def _phase(g: jax.Array, kernel: jax.Array, strides: int, row: int, column: int) -> jax.Array:
  """Return the rows ``row, row + strides, ...`` and the columns ``column, ...`` of the input's gradient."""
  rows, row_padding = _taps(len(kernel), strides, row)
  columns, column_padding = _taps(len(kernel), strides, column)
  taps = kernel[rows, columns][::-1, ::-1].transpose(0, 1, 3, 2)
  if 0 in taps.shape:
    return jnp.zeros((*g.shape[:3], taps.shape[-1]), g.dtype)
  return jax.lax.conv_general_dilated(g, taps, (1, 1), (row_padding, column_padding), dimension_numbers=DIMENSIONS)


def _taps(size: int, strides: int, phase: int) -> tuple[slice, tuple[int, int]]:
  """Return the taps that reach pixels ``strides * j + phase`` from output pixels, and the padding of the latter.

  Tap ``k`` takes input ``strides * i - size // 2 + k`` to output ``i``, so it takes output ``j + after - t`` back to
  that pixel where ``k = first + strides * t``.
  """
  first, after = (phase + size // 2) % strides, (phase + size // 2) // strides
  count = len(range(first, size, strides))
  return slice(first, None, strides), (count - 1 - after, after)


def normalize(
  x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
  """Return ``(x - mean) * scale / sqrt(var + epsilon) + bias``, float32."""
  return (x.astype(jnp.float32) - mean) * (scale * jax.lax.rsqrt(var + epsilon)) + bias


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return mean and biased variance over all but the last axis, float32 ``[C]``."""
  x = x.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes)
  return mean, jnp.maximum(0.0, jnp.square(x).mean(axes) - jnp.square(mean))


def moved(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
  """Return ``momentum * old + (1 - momentum) * new``: ``new`` itself, whatever ``old`` is, where the momentum is 0."""
  return momentum * old + (1 - momentum) * new if momentum else new


def batch_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return ``x`` normalised by its own mean and variance, float32, and these two."""
  mean, var = moments(x)
  return normalize(x, mean, var, scale, bias, epsilon), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_cpu(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return ``batch_norm``, with its gradient in closed form; there is none of the mean and the variance."""
  return batch_norm(x, scale, bias, epsilon)


def _norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
  y, mean, var = batch_norm(x, scale, bias, epsilon)
  return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + epsilon))


def _norm_backward(epsilon: float, kept: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return the gradients (Ioffe and Szegedy 2015, section 3): two sums, one pass over ``x`` and ``g`` for each."""
  x, scale, mean, inverse = kept
  g = cotangents[0]
  axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
  normalized = (x.astype(jnp.float32) - mean) * inverse
  bias_gradient, scale_gradient = g.sum(axes), (g * normalized).sum(axes)
  x_gradient = scale * inverse * (g - bias_gradient / count - normalized * (scale_gradient / count))
  return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


batch_norm_cpu.defvjp(_norm_forward, _norm_backward)
