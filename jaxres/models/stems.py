"""What an image goes through before the first block."""

import flax.linen as nn
import jax

from jaxres.models.ops import Activation, ModuleDef, torch_padding


class Stem(nn.Module):
  """What the stems have in common.

  Attributes:
    width: channels of the result.
    conv: makes a ``Conv``.
    norm: makes a ``BatchNorm``.
    act: the activation.
    preact: leave out the last norm and activation, with which the blocks of a pre-activation network start.
  """

  width: int
  conv: ModuleDef
  norm: ModuleDef
  act: Activation = nn.relu
  preact: bool = False

  def finish(self, x: jax.Array, name: str) -> jax.Array:
    """Return ``x`` after the last norm, called ``name``, and activation, where the stem has them."""
    return x if self.preact else self.act(self.norm(name=name)(x))


class CifarStem(Stem):
  """3x3 convolution of stride 1, for small images (He et al. 2015, section 4.2).

  Maps ``[B, H, W, C]`` to ``[B, H, W, width]``.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return self.finish(self.conv(self.width, 3, name='conv')(x), 'bn')


class CifarPoolStem(Stem):
  """``CifarStem`` and 3x3 max-pool of stride 2: torchvision's network with only its first convolution replaced.

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / 2), ceil(W / 2), width]``.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.finish(self.conv(self.width, 3, name='conv')(x), 'bn')
    return nn.max_pool(x, (3, 3), (2, 2), padding=torch_padding(3))


class ImageNetStem(Stem):
  """7x7 convolution of stride 2 and 3x3 max-pool of stride 2 (He et al. 2015, table 1).

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / 4), ceil(W / 4), width]``.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.finish(self.conv(self.width, 7, 2, name='conv')(x), 'bn')
    return nn.max_pool(x, (3, 3), (2, 2), padding=torch_padding(3))


class DeepStem(Stem):
  """Three 3x3 convolutions, the first of stride 2, and 3x3 max-pool of stride 2 (He et al. 2018, ResNet-C).

  Maps ``[B, H, W, C]`` to ``[B, ceil(H / 4), ceil(W / 4), width]``; the first two have half the channels.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.width // 2, 3, 2, name='conv1')(x)
    x = self.act(self.norm(name='bn1')(x))
    x = self.conv(self.width // 2, 3, name='conv2')(x)
    x = self.act(self.norm(name='bn2')(x))
    x = self.finish(self.conv(self.width, 3, name='conv3')(x), 'bn3')
    return nn.max_pool(x, (3, 3), (2, 2), padding=torch_padding(3))
