"""The ResNet family: one module, one table of named models."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxres.models import blocks

STEMS = {'cifar': blocks.CifarStem, 'imagenet': blocks.ImageNetStem}
SHORTCUTS = ('projection', 'pad')

dense_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # torch.nn.Linear


class ResNet(nn.Module):
  """Residual network (He et al. 2015, https://arxiv.org/abs/1512.03385) on images ``[B, H, W, C]``.

  Parameters are float32 and named ``stem/conv``, ``stage1/block0/conv1``, ``head/fc``; ``batch_stats`` holds the
  running mean and (biased) variance of every BatchNorm under the same names. Activations have ``dtype``; logits are
  float32.

  Attributes:
    stage_sizes: blocks in each stage.
    widths: channels of each stage before the block's expansion; every stage but the first halves the image.
    block: ``BasicBlock`` or ``BottleneckBlock``.
    num_classes: width of the logits.
    stem_type: ``'cifar'`` or ``'imagenet'``.
    shortcut: where the shape changes: ``'projection'`` (1x1 convolution) or ``'pad'`` (zero channels, option A).
    zero_init_residual: start the last norm of each block at zero, so that each block starts as the identity
      (Goyal et al. 2017, section 5.1).
    dtype: of the activations and of the arithmetic; BatchNorm statistics stay float32.
  """

  stage_sizes: tuple[int, ...]
  widths: tuple[int, ...]
  block: Callable[..., Any]
  num_classes: int = 1000
  stem_type: str = 'imagenet'
  shortcut: str = 'projection'
  zero_init_residual: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def features(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Return the activations of the stem and of each stage.

    Args:
      x: normalised images, float ``[B, H, W, C]``.
      train: normalise by the batch and update ``batch_stats``, or normalise by ``batch_stats``.

    Returns:
      ``{'stem': ..., 'stage1': ..., ...}``: ``[B, h, w, c]`` of the model's dtype.
    """
    conv = functools.partial(blocks.Conv, dtype=self.dtype)
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
    zeros = nn.initializers.zeros
    last_norm = functools.partial(norm, scale_init=zeros) if self.zero_init_residual else norm
    x = x.astype(self.dtype)
    x = STEMS[self.stem_type](self.widths[0], conv, norm, name='stem')(x)
    stages = {'stem': x}
    for i, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
      x = Stage(
        size,
        width,
        1 if i == 0 else 2,
        self.block,
        self.shortcut,
        conv,
        norm,
        last_norm,
        name=f'stage{i + 1}',
      )(x)
      stages[f'stage{i + 1}'] = x
    return stages

  @nn.compact_name_scope
  def head(self, stages: Mapping[str, jax.Array]) -> jax.Array:
    """Return the logits, float32 ``[B, num_classes]``, of what ``features`` returned."""
    x = stages[f'stage{len(self.stage_sizes)}']
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, kernel_init=dense_init, dtype=jnp.float32, name='fc')(x)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Return the logits, float32 ``[B, num_classes]``, of normalised images ``[B, H, W, C]``."""
    return self.head(self.features(x, train=train))


class Stage(nn.Module):
  """Blocks of one width; the first has the stride."""

  size: int
  width: int
  strides: int
  block: Callable[..., Any]
  shortcut: str
  conv: blocks.ModuleDef
  norm: blocks.ModuleDef
  last_norm: blocks.ModuleDef

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.size):
      strides = self.strides if i == 0 else 1
      x = self.block(self.width, strides, self.shortcut, self.conv, self.norm, self.last_norm, name=f'block{i}')(x)
    return x


def imagenet(block: Callable[..., Any], *stage_sizes: int) -> functools.partial[ResNet]:
  """Return the constructor of a network of table 1 of the paper: four stages, 64 to 512 channels."""
  return functools.partial(ResNet, stage_sizes, (64, 128, 256, 512), block)


def thin(depth: int) -> functools.partial[ResNet]:
  """Return the constructor of a network of section 4.2 of the paper: three stages of ``(depth - 2) / 6`` blocks."""
  size = (depth - 2) // 6
  return functools.partial(ResNet, (size,) * 3, (16, 32, 64), blocks.BasicBlock, stem_type='cifar', shortcut='pad')


MODELS: dict[str, functools.partial[ResNet]] = {
  'resnet18': imagenet(blocks.BasicBlock, 2, 2, 2, 2),
  'resnet34': imagenet(blocks.BasicBlock, 3, 4, 6, 3),
  'resnet50': imagenet(blocks.BottleneckBlock, 3, 4, 6, 3),
  'resnet101': imagenet(blocks.BottleneckBlock, 3, 4, 23, 3),
  'resnet152': imagenet(blocks.BottleneckBlock, 3, 8, 36, 3),
  'resnet20': thin(20),
  'resnet32': thin(32),
  'resnet44': thin(44),
  'resnet56': thin(56),
  'resnet110': thin(110),
}
