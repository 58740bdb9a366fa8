"""A ResNet as people write it with flax: plain ``nn.Conv`` and ``nn.BatchNorm``, nothing done for speed."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

SIZES = {'resnet18': (2, 2, 2, 2), 'resnet34': (3, 4, 6, 3), 'resnet50': (3, 4, 6, 3), 'resnet101': (3, 4, 23, 3)}


class Basic(nn.Module):
  """Two 3x3 convolutions."""

  width: int
  strides: int
  conv: Callable[..., Any]
  norm: Callable[..., Any]
  pad_shortcut: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm()(self.conv(self.width, (3, 3), self.strides, padding=1)(x)))
    y = self.norm()(self.conv(self.width, (3, 3), padding=1)(y))
    if x.shape != y.shape and self.pad_shortcut:
      missing = self.width - x.shape[-1]
      x = jnp.pad(x[:, :: self.strides, :: self.strides], ((0, 0), (0, 0), (0, 0), (missing // 2, missing // 2)))
    elif x.shape != y.shape:
      x = self.norm()(self.conv(self.width, (1, 1), self.strides)(x))
    return nn.relu(x + y)


class Bottleneck(Basic):
  """1x1, 3x3, 1x1 convolutions."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm()(self.conv(self.width, (1, 1))(x)))
    y = nn.relu(self.norm()(self.conv(self.width, (3, 3), self.strides, padding=1)(y)))
    y = self.norm()(self.conv(4 * self.width, (1, 1))(y))
    if x.shape != y.shape:
      x = self.norm()(self.conv(4 * self.width, (1, 1), self.strides)(x))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Stem, stages, classifier."""

  sizes: tuple[int, ...]
  widths: tuple[int, ...]
  block: type[Basic]
  classes: int
  small: bool
  pad_shortcut: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
    if self.small:
      x = nn.relu(norm()(conv(self.widths[0], (3, 3), padding=1)(x)))
    else:
      x = nn.relu(norm()(conv(self.widths[0], (7, 7), 2, padding=3)(x)))
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for i, (size, width) in enumerate(zip(self.sizes, self.widths, strict=True)):
      for j in range(size):
        x = self.block(width, 2 if i and j == 0 else 1, conv, norm, self.pad_shortcut)(x)
    return nn.Dense(self.classes)(x.mean((1, 2)).astype(jnp.float32))


def create(name: str, stem: str | None, classes: int, dtype: Any) -> ResNet:
  """Return the network called ``name``, one of ``SIZES`` or a thin one such as ``resnet20``."""
  if name in SIZES:
    block = Basic if name in ('resnet18', 'resnet34') else Bottleneck
    return ResNet(SIZES[name], (64, 128, 256, 512), block, classes, stem == 'cifar', False, dtype)
  size = (int(name.removeprefix('resnet')) - 2) // 6
  return ResNet((size,) * 3, (16, 32, 64), Basic, classes, True, True, dtype)
