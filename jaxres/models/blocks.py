"""The parts of a ResNet: stems, residual blocks, shortcuts.

Convolutions pad as torch does, the same on both sides, whatever the stride: Flax's ``SAME`` pads a strided 3x3 by
(0, 1), which shifts the grid and silently costs imported weights up to two points of top-1.

A block knows nothing of dtypes or modes: ``conv`` and ``norm`` come to it as partials made once by the model.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxres.backend import materialize

ModuleDef = Callable[..., Any]

conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015; torchvision


def torch_padding(kernel: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """Return the padding ``torch.nn.Conv2d(padding=kernel // 2)`` uses, as ``((top, bottom), (left, right))``."""
  return ((kernel // 2, kernel // 2),) * 2


class Conv(nn.Module):
  """Convolution without bias; its padding is torch's ``kernel_size // 2``.

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / strides), ceil(W / strides), channels]`` of dtype ``dtype``; its parameter
  ``kernel`` is float32 ``[kernel_size, kernel_size, C, channels]``.
  """

  channels: int
  kernel_size: int
  strides: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.channels)
    kernel = self.param('kernel', conv_init, shape).astype(self.dtype)
    return jax.lax.conv_general_dilated(
      materialize(x.astype(self.dtype), kernel),
      kernel,
      window_strides=(self.strides, self.strides),
      padding=torch_padding(self.kernel_size),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


class CifarStem(nn.Module):
  """3x3 convolution of stride 1, for small images (He et al. 2015, section 4.2).

  Maps ``[B, H, W, C]`` to ``[B, H, W, width]``.
  """

  width: int
  conv: ModuleDef
  norm: ModuleDef

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.width, 3, name='conv')(x)
    return nn.relu(self.norm(name='bn')(x))


class ImageNetStem(nn.Module):
  """7x7 convolution of stride 2 and 3x3 max-pool of stride 2 (He et al. 2015, table 1).

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / 4), ceil(W / 4), width]``.
  """

  width: int
  conv: ModuleDef
  norm: ModuleDef

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.width, 7, 2, name='conv')(x)
    x = nn.relu(self.norm(name='bn')(x))
    return nn.max_pool(x, (3, 3), (2, 2), padding=torch_padding(3))


def pad_shortcut(x: jax.Array, channels: int, strides: int) -> jax.Array:
  """Subsample and pad with zero channels: the shortcut without parameters (He et al. 2015, option A).

  Args:
    x: ``[B, H, W, C]``.
    channels: channels of the result, at least ``C``. The zeros are divided between both sides of the channel axis,
      as public CIFAR weights expect.
    strides: of the subsampling, which takes the pixels ``0, strides, 2 * strides ...``

  Returns:
    ``[B, ceil(H / strides), ceil(W / strides), channels]``.
  """
  missing = channels - x.shape[-1]
  x = x[:, ::strides, ::strides]
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class Projection(nn.Module):
  """1x1 convolution and norm: the shortcut where the shape changes (He et al. 2015, option B)."""

  channels: int
  strides: int
  conv: ModuleDef
  norm: ModuleDef

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.channels, 1, self.strides, name='conv')(x)
    return self.norm(name='bn')(x)


def shortcut(block: Any, x: jax.Array, channels: int) -> jax.Array:
  """Return ``x`` in the shape of ``block``'s output: itself where that is its shape already."""
  if block.strides == 1 and x.shape[-1] == channels:
    return x
  if block.shortcut == 'pad':
    return pad_shortcut(x, channels, block.strides)
  return Projection(channels, block.strides, block.conv, block.norm, name='shortcut')(x)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions (He et al. 2015, figure 5 left).

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / strides), ceil(W / strides), width]``.
  """

  width: int
  strides: int
  shortcut: str
  conv: ModuleDef
  norm: ModuleDef
  last_norm: ModuleDef

  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.conv(self.width, 3, self.strides, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = self.conv(self.width, 3, name='conv2')(y)
    y = self.last_norm(name='bn2')(y)
    return nn.relu(y + shortcut(self, x, self.width))


class BottleneckBlock(nn.Module):
  """1x1, 3x3, 1x1 convolutions (He et al. 2015, figure 5 right), the stride on the 3x3 as in torchvision ("v1.5").

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / strides), ceil(W / strides), 4 * width]``.
  """

  width: int
  strides: int
  shortcut: str
  conv: ModuleDef
  norm: ModuleDef
  last_norm: ModuleDef

  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = self.width * self.expansion
    y = self.conv(self.width, 1, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = self.conv(self.width, 3, self.strides, name='conv2')(y)
    y = nn.relu(self.norm(name='bn2')(y))
    y = self.conv(channels, 1, name='conv3')(y)
    y = self.last_norm(name='bn3')(y)
    return nn.relu(y + shortcut(self, x, channels))
