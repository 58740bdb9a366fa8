"""Convolution and BatchNorm, with hand-written gradients where XLA:CPU's own are slow.

Each hand-written form has the values and the gradients of the plain one; ``cpu.wants_cpu_forms`` says where it is
used, docs/performance.md what it gains. Only reverse mode knows it, so evaluation takes the plain forms.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxres.models import cpu
from jaxres.models.cpu import materialize, wants_cpu_forms
from jaxres.models.ops import align_channels, batch_norm, conv, normalize, update_running

conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015; torchvision


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
    train: the gradient is needed, by reverse mode.
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
    x = materialize(jnp.asarray(x, self.dtype), kernel)
    if self.train and self.groups == 1 and wants_cpu_forms():
      x = cpu.conv_cpu(x, kernel, self.strides)
    else:
      x = conv(x, kernel, self.strides, self.groups)
    if not self.use_bias:
      return x
    bias = self.param('bias', nn.initializers.zeros, (self.channels,)).astype(self.dtype)
    return x + align_channels(bias, x.ndim)


class BatchNorm(nn.Module):
  """Batch normalization over all but the last axis (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

  Parameters and running statistics have Flax's names, shapes and meaning: ``scale`` and ``bias``, ``mean`` and the
  biased variance ``var`` in ``batch_stats``; statistics are float32, the variance ``E[x^2] - E[x]^2`` in one pass.

  Attributes:
    train: normalize by the batch and move the running statistics, or normalize by these.
    frozen: paths, such as ``stem/bn``, of the BatchNorms that use their running statistics in training too, without
      an update.
    momentum: of the running statistics: the share of the old value.
    epsilon: added to the variance.
    dtype: of the result.
    use_scale: multiply by a trained scale.
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
    form = cpu.batch_norm_cpu if wants_cpu_forms() else batch_norm
    y, batch_mean, batch_var = form(x, scale, bias, self.epsilon)
    if not self.is_initializing():
      mean.value = update_running(mean.value, batch_mean, self.momentum)
      var.value = update_running(var.value, batch_var, self.momentum)
    return y.astype(self.dtype)
