"""The residual blocks of a ResNet, and their shortcuts.

Convolutions pad as torch does, the same on both sides, whatever the stride: Flax's ``SAME`` pads a strided 3x3 by
(0, 1), which shifts the grid and silently costs imported weights up to two points of top-1.

A block knows nothing of dtypes or modes: ``conv``, ``norm`` and ``drop`` come to it as partials made once by the model.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxres.models.layers import conv_init
from jaxres.models.ops import Activation, ModuleDef


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


def average_pool(x: jax.Array, strides: int) -> jax.Array:
  """Return the means of squares of ``strides`` pixels a side, taken in float32; at an odd edge, of what is left.

  Args:
    x: ``[B, H, W, C]``.
    strides: of the pooling.

  Returns:
    ``[B, ceil(H / strides), ceil(W / strides), C]``.
  """
  window = (strides, strides)
  rest = [(0, -size % strides) for size in x.shape[1:3]]
  means = nn.avg_pool(x.astype(jnp.float32), window, window, padding=rest, count_include_pad=False)
  return means.astype(x.dtype)


class Projection(nn.Module):
  """1x1 convolution and norm: the shortcut where the shape changes (He et al. 2015, option B).

  Attributes:
    channels: of the result.
    strides: of the convolution, or of the pooling.
    conv: makes a ``Conv``.
    norm: makes a ``BatchNorm``; None leaves it out.
    average: subsample by an average-pool before the convolution (He et al. 2018, ResNet-D).
  """

  channels: int
  strides: int
  conv: ModuleDef
  norm: ModuleDef | None
  average: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.average:
      x = self.conv(self.channels, 1, name='conv')(average_pool(x, self.strides))
    else:
      x = self.conv(self.channels, 1, self.strides, name='conv')(x)
    return x if self.norm is None else self.norm(name='bn')(x)


class SqueezeExcitation(nn.Module):
  """Scale each channel by a gate computed from the means of all (Hu et al. 2017, https://arxiv.org/abs/1709.01507).

  Maps ``[B, H, W, C]`` to ``[B, H, W, C]``. The gate is a ReLU network of two 1x1 convolutions on ``[B, 1, 1, C]``,
  ``reduce`` to ``C / 16`` channels and ``expand`` back, and a sigmoid.
  """

  conv: ModuleDef

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    gate = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
    gate = nn.relu(self.conv(max(1, channels // 16), 1, use_bias=True, name='reduce')(gate))
    return x * nn.sigmoid(self.conv(channels, 1, use_bias=True, name='expand')(gate))


class Block(nn.Module):
  """What the residual blocks have in common: their shape and their parts.

  Attributes:
    width: channels of the result before the block's ``expansion``.
    strides: of the block.
    shortcut: ``'projection'``, ``'average'`` or ``'pad'``.
    conv: makes a ``Conv``.
    norm: makes a ``BatchNorm``.
    act: the activation.
    drop: makes a ``Dropout`` of a rate, and knows whether the network is being trained.
    groups: of the 3x3 convolutions (Xie et al. 2016, ResNeXt).
    width_per_group: channels of each group inside the block, for a width of 64; as torchvision counts them.
    se: end the residual branch with a ``SqueezeExcitation``.
    zero_init: start as the identity: the branch's last parameters that multiply it are zero.
    dropout: rate before the last convolution (Zagoruyko and Komodakis 2016, section 2.4).
    stochastic_depth: rate at which an example's residual branch is dropped (Huang et al. 2016).
  """

  width: int
  strides: int
  shortcut: str
  conv: ModuleDef
  norm: ModuleDef
  act: Activation = nn.relu
  drop: ModuleDef = functools.partial(nn.Dropout, deterministic=True)
  groups: int = 1
  width_per_group: int = 64
  se: bool = False
  zero_init: bool = False
  dropout: float = 0.0
  stochastic_depth: float = 0.0

  expansion = 1
  preact = False

  @property
  def inner(self) -> int:
    """Channels between the convolutions."""
    return self.width * self.width_per_group // 64 * self.groups


def keeps_shape(block: Block, x: jax.Array, channels: int) -> bool:
  """Return whether ``block``, with ``channels`` output channels, can add ``x`` as it is.

  Args:
    block: the block.
    x: its input, ``[B, H, W, C]``.
    channels: of its output.
  """
  return block.strides == 1 and x.shape[-1] == channels


def shortcut(block: Block, x: jax.Array, channels: int) -> jax.Array:
  """Return ``x`` in the shape of ``block``'s output: itself where that is its shape already.

  Args:
    block: the block.
    x: its input, ``[B, H, W, C]``.
    channels: of its output.

  Returns:
    ``[B, ceil(H / strides), ceil(W / strides), channels]``.
  """
  if keeps_shape(block, x, channels):
    return x
  if block.shortcut == 'pad':
    return pad_shortcut(x, channels, block.strides)
  norm = None if block.preact else block.norm
  average = block.shortcut == 'average'
  return Projection(channels, block.strides, block.conv, norm, average, name='shortcut')(x)


def finish_branch(block: Block, y: jax.Array) -> jax.Array:
  """Return what ``block`` adds to its shortcut, given what its last convolution or norm left.

  Stochastic depth drops the branch per example and divides those that stay by their probability, as
  torchvision's ``stochastic_depth(mode='row')`` does.

  Args:
    block: the block.
    y: of its last convolution or norm, ``[B, h, w, c]``.

  Returns:
    ``[B, h, w, c]``.
  """
  if block.se:
    y = SqueezeExcitation(block.conv, name='se')(y)
  return block.drop(block.stochastic_depth, broadcast_dims=(1, 2, 3), name='stochastic_depth')(y)


class BasicBlock(Block):
  """Two 3x3 convolutions (He et al. 2015, figure 5 left).

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / strides), ceil(W / strides), width]``.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    last_scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
    y = self.conv(self.inner, 3, self.strides, self.groups, name='conv1')(x)
    y = self.act(self.norm(name='bn1')(y))
    y = self.drop(self.dropout, name='dropout')(y)
    y = self.conv(self.width, 3, groups=self.groups, name='conv2')(y)
    y = self.norm(scale_init=last_scale, name='bn2')(y)
    return self.act(finish_branch(self, y) + shortcut(self, x, self.width))


class BottleneckBlock(Block):
  """1x1, 3x3, 1x1 convolutions (He et al. 2015, figure 5 right), the stride on the 3x3 as in torchvision ("v1.5").

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / strides), ceil(W / strides), 4 * width]``.
  """

  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = self.width * self.expansion
    last_scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
    y = self.conv(self.inner, 1, name='conv1')(x)
    y = self.act(self.norm(name='bn1')(y))
    y = self.conv(self.inner, 3, self.strides, self.groups, name='conv2')(y)
    y = self.act(self.norm(name='bn2')(y))
    y = self.drop(self.dropout, name='dropout')(y)
    y = self.conv(channels, 1, name='conv3')(y)
    y = self.norm(scale_init=last_scale, name='bn3')(y)
    return self.act(finish_branch(self, y) + shortcut(self, x, channels))


class PreactBasicBlock(Block):
  """Two 3x3 convolutions, norm and activation before each (He et al. 2016, https://arxiv.org/abs/1603.05027).

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / strides), ceil(W / strides), width]``. Nothing follows the sum. Where the
  shape changes, the shortcut starts, as the branch does, after the first norm and activation, and has no norm.
  ``zero_init`` zeroes the last kernel: a last scale of zero would keep ReLU's gradient at zero forever.
  """

  preact = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    last_kernel = nn.initializers.zeros if self.zero_init else conv_init
    activated = self.act(self.norm(name='bn1')(x))
    y = self.conv(self.inner, 3, self.strides, self.groups, name='conv1')(activated)
    y = self.act(self.norm(name='bn2')(y))
    y = self.drop(self.dropout, name='dropout')(y)
    y = self.conv(self.width, 3, groups=self.groups, kernel_init=last_kernel, name='conv2')(y)
    source = x if keeps_shape(self, x, self.width) else activated
    return finish_branch(self, y) + shortcut(self, source, self.width)


class PreactBottleneckBlock(Block):
  """1x1, 3x3, 1x1 convolutions, norm and activation before each; all else as in ``PreactBasicBlock``.

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / strides), ceil(W / strides), 4 * width]``; the stride is on the 3x3.
  """

  expansion = 4
  preact = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = self.width * self.expansion
    last_kernel = nn.initializers.zeros if self.zero_init else conv_init
    activated = self.act(self.norm(name='bn1')(x))
    y = self.conv(self.inner, 1, name='conv1')(activated)
    y = self.act(self.norm(name='bn2')(y))
    y = self.conv(self.inner, 3, self.strides, self.groups, name='conv2')(y)
    y = self.act(self.norm(name='bn3')(y))
    y = self.drop(self.dropout, name='dropout')(y)
    y = self.conv(channels, 1, kernel_init=last_kernel, name='conv3')(y)
    source = x if keeps_shape(self, x, channels) else activated
    return finish_branch(self, y) + shortcut(self, source, channels)
