"""The ResNet family: one module class, and a table of named models."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxres.models import blocks, layers, speedrun, stems
from jaxres.models.ops import Activation

STEMS = {
  'cifar': stems.CifarStem,
  'cifar_pool': stems.CifarPoolStem,
  'imagenet': stems.ImageNetStem,
  'deep': stems.DeepStem,
  'whitening': speedrun.WhiteningStem,
}


def mean_over_map(x: jax.Array) -> jax.Array:
  """Return the mean of each channel of ``x``, float ``[B, H, W, C]``, as ``[B, C]``."""
  return jnp.mean(x, axis=(1, 2))


def max_over_map(x: jax.Array) -> jax.Array:
  """Return the maximum of each channel of ``x``, float ``[B, H, W, C]``, as ``[B, C]``; the first of equals.

  It is taken by its place: the gradient of ``jnp.max`` looks for the value, which XLA:CPU may compute once more in
  another fusion, with another last bit, so that nothing is equal to it.
  """
  batch, height, width, channels = x.shape  # the batch may be symbolic
  x = x.reshape(batch, height * width, channels)
  return jnp.take_along_axis(x, jnp.argmax(x, axis=1, keepdims=True), axis=1)[:, 0]


POOLS: dict[str, Callable[[jax.Array], jax.Array]] = {'mean': mean_over_map, 'max': max_over_map}
SHORTCUTS = ('projection', 'average', 'pad')
BN_MODES = ('global', 'per_device', 'frozen')
ACTIVATIONS: dict[str, Activation] = {
  'relu': nn.relu,
  'silu': nn.silu,
  'gelu': functools.partial(nn.gelu, approximate=False),  # as torch.nn.GELU
  'leaky_relu': nn.leaky_relu,  # slope 0.01
}
dense_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # torch.nn.Linear


class ResNet(nn.Module):
  """Residual network (He et al. 2015, https://arxiv.org/abs/1512.03385) on images ``[B, H, W, C]`` of any size.

  Parameters are float32 and named ``stem/conv``, ``stage1/block0/conv1``, ``head/fc``; ``batch_stats`` holds the
  running mean and (biased) variance of every BatchNorm under the same names. Activations have ``dtype``; logits are
  float32. Training with ``dropout`` or ``stochastic_depth`` takes ``rngs={'dropout': key}``.

  Attributes:
    stage_sizes: blocks in each stage.
    widths: channels of each stage before the block's expansion; every stage but the first halves the image.
    block: one of ``blocks``; after the last of a pre-activation network come a norm, ``norm``, and an activation.
    num_classes: width of the logits.
    stem_type: ``'cifar'``, ``'cifar_pool'``, ``'imagenet'``, ``'deep'`` or ``'whitening'``.
    shortcut: where the shape changes: ``'projection'`` (1x1 convolution), ``'average'`` (the same after an
      average-pool) or ``'pad'`` (zero channels, option A).
    zero_init_residual: start each block as the identity: the scale of its last norm (Goyal et al. 2017, section 5.1),
      or the last kernel of a pre-activation block, is zero.
    dtype: of the activations and of the arithmetic; BatchNorm statistics stay float32.
    stem_width: channels of the stem; ``widths[0]`` where not given. A whitening stem has 8 per image channel instead.
    groups: of the 3x3 convolutions in blocks.
    width_per_group: channels of a group in a block of width 64, in proportion in others.
    se: squeeze and excitation in each block.
    act: the activation: the name of one of ``ACTIVATIONS``, or a function.
    dropout: rate.
    dropout_at: ``'head'`` (before the classifier) or ``'blocks'`` (before the last convolution of each).
    stochastic_depth: rate of the last block; that of the others is in proportion to their depth.
    bn_momentum: of the running statistics: the share of the old value.
    bn_scale: BatchNorm has a scale, not only a bias.
    pool: before the classifier: ``'mean'`` or ``'max'``.
    logit_scale: factor of the logits.
    remat: keep only the inputs of blocks for the gradient, and compute the blocks again: less memory, more time.
    bn: what BatchNorm normalizes by in training: ``'global'`` or ``'per_device'`` (the batch that it sees: the training
      step decides whether that is all of it or the part of one device), or ``'frozen'`` (its running statistics, which
      stay as they are).
    frozen_norms: paths of BatchNorms, such as ``'stem/bn'``, that use their running statistics in training too.
  """

  stage_sizes: tuple[int, ...]
  widths: tuple[int, ...]
  block: type[blocks.Block]
  num_classes: int = 1000
  stem_type: str = 'imagenet'
  shortcut: str = 'projection'
  zero_init_residual: bool = False
  dtype: Any = jnp.float32
  stem_width: int | None = None
  groups: int = 1
  width_per_group: int = 64
  se: bool = False
  act: Any = 'relu'
  dropout: float = 0.0
  dropout_at: str = 'head'
  stochastic_depth: float = 0.0
  bn_momentum: float = 0.9
  bn_scale: bool = True
  pool: str = 'mean'
  logit_scale: float = 1.0
  remat: bool = False
  bn: str = 'global'
  frozen_norms: tuple[str, ...] = ()

  @nn.compact
  def features(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Return the activations of the stem and of each stage.

    Args:
      x: normalized images, float ``[B, H, W, C]``.
      train: normalize by the batch and update ``batch_stats``, or normalize by ``batch_stats``; drop, or do not.

    Returns:
      ``{'stem': ..., 'stage1': ..., ...}``: ``[B, h, w, c]`` of the model's dtype. The last stage of a
      pre-activation network has been through its final norm and activation, the others have not.
    """
    conv = functools.partial(layers.Conv, dtype=self.dtype, train=train)
    norm = functools.partial(
      layers.BatchNorm,
      train=train and self.bn != 'frozen',
      frozen=self.frozen_norms,
      momentum=self.bn_momentum,
      use_scale=self.bn_scale,
      dtype=self.dtype,
    )
    act = ACTIVATIONS[self.act] if isinstance(self.act, str) else self.act
    block = functools.partial(
      self.block,
      shortcut=self.shortcut,
      conv=conv,
      norm=norm,
      act=act,
      drop=functools.partial(nn.Dropout, deterministic=not train),
      groups=self.groups,
      width_per_group=self.width_per_group,
      se=self.se,
      zero_init=self.zero_init_residual,
      dropout=self.dropout if self.dropout_at == 'blocks' else 0.0,
    )
    stem, width = STEMS[self.stem_type], self.stem_width or self.widths[0]
    x = stem(width, conv, norm, act, self.block.preact, name='stem')(x.astype(self.dtype))
    stages = {'stem': x}
    rates = linear_decay(self.stochastic_depth, self.stage_sizes)
    for i, (width, stage_rates) in enumerate(zip(self.widths, rates, strict=True)):
      x = Stage(block, width, 1 if i == 0 else 2, stage_rates, self.remat, name=f'stage{i + 1}')(x)
      stages[f'stage{i + 1}'] = x
    if self.block.preact:
      stages[f'stage{len(rates)}'] = act(norm(name='norm')(x))
    return stages

  @nn.compact_name_scope
  def head(self, stages: Mapping[str, jax.Array], *, train: bool = False) -> jax.Array:
    """Return the logits, float32 ``[B, num_classes]``, of what ``features`` returned; ``train`` drops."""
    x = self.pool_features(stages)
    rate = self.dropout if self.dropout_at == 'head' else 0.0
    x = nn.Dropout(rate, deterministic=not train, name='dropout')(x)
    return self.logit_scale * nn.Dense(self.num_classes, kernel_init=dense_init, dtype=jnp.float32, name='fc')(x)

  def pool_features(self, stages: Mapping[str, jax.Array]) -> jax.Array:
    """Return what the classifier is given of what ``features`` returned, float32 ``[B, c]``."""
    return POOLS[self.pool](stages[f'stage{len(self.stage_sizes)}'].astype(jnp.float32))

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Return the logits, float32 ``[B, num_classes]``, of normalized images ``[B, H, W, C]``."""
    return self.head(self.features(x, train=train), train=train)


class Stage(nn.Module):
  """Blocks of one width; the first has the stride, and each its rate of stochastic depth."""

  block: Callable[..., blocks.Block]
  width: int
  strides: int
  rates: tuple[float, ...]
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    run: Callable[[nn.Module, jax.Array], jax.Array] = lambda block, x: block(x)
    if self.remat:
      run = nn.remat(run)
    for i, rate in enumerate(self.rates):
      strides = self.strides if i == 0 else 1
      x = run(self.block(self.width, strides, stochastic_depth=rate, name=f'block{i}'), x)
    return x


def linear_decay(rate: float, stage_sizes: tuple[int, ...]) -> list[tuple[float, ...]]:
  """Return the rate of stochastic depth of each block, by stage: ``rate * l / L`` for the l-th of L, counted from 1.

  The linear decay rule of Huang et al. 2016 (https://arxiv.org/abs/1603.09382, equation 4).

  Args:
    rate: of the last block.
    stage_sizes: blocks in each stage.
  """
  total = sum(stage_sizes)
  numbers = itertools.count(1)
  return [tuple(rate * next(numbers) / total for _ in range(size)) for size in stage_sizes]


def make_imagenet(block: type[blocks.Block], *stage_sizes: int, **options: Any) -> functools.partial[ResNet]:
  """Return the constructor of a network of table 1 of the paper: four stages, 64 to 512 channels."""
  return functools.partial(ResNet, stage_sizes, (64, 128, 256, 512), block, **options)


def make_thin(depth: int, block: type[blocks.Block] = blocks.BasicBlock, **options: Any) -> functools.partial[ResNet]:
  """Return the constructor of a network of section 4.2 of the paper: three stages, 16 to 64 channels.

  Args:
    depth: layers with parameters: three stages of blocks, the first convolution and the classifier.
    block: with 2 layers, or 3 where it is a bottleneck.
    **options: of ``ResNet``.
  """
  size = (depth - 2) // (6 if block.expansion == 1 else 9)
  return functools.partial(
    ResNet, (size,) * 3, (16, 32, 64), block, **{'stem_type': 'cifar', 'shortcut': 'pad'} | options
  )


def make_wide(depth: int, factor: int) -> functools.partial[ResNet]:
  """Return the constructor of a network of Zagoruyko and Komodakis 2016 (https://arxiv.org/abs/1605.07146).

  Args:
    depth: convolutions, those of the shortcuts counted: three stages of ``(depth - 4) / 6`` blocks.
    factor: of the widths 16, 32 and 64; the stem keeps 16 channels.
  """
  size, widths = (depth - 4) // 6, (16 * factor, 32 * factor, 64 * factor)
  return functools.partial(
    ResNet, (size,) * 3, widths, blocks.PreactBasicBlock, stem_type='cifar', stem_width=16, dropout_at='blocks'
  )


MODELS: dict[str, functools.partial[ResNet]] = {
  'resnet18': make_imagenet(blocks.BasicBlock, 2, 2, 2, 2),
  'resnet34': make_imagenet(blocks.BasicBlock, 3, 4, 6, 3),
  'resnet50': make_imagenet(blocks.BottleneckBlock, 3, 4, 6, 3),
  'resnet101': make_imagenet(blocks.BottleneckBlock, 3, 4, 23, 3),
  'resnet152': make_imagenet(blocks.BottleneckBlock, 3, 8, 36, 3),
  'resnet50d': make_imagenet(blocks.BottleneckBlock, 3, 4, 6, 3, stem_type='deep', shortcut='average'),
  'resnext50_32x4d': make_imagenet(blocks.BottleneckBlock, 3, 4, 6, 3, groups=32, width_per_group=4),
  'resnext101_32x8d': make_imagenet(blocks.BottleneckBlock, 3, 4, 23, 3, groups=32, width_per_group=8),
  'wide_resnet50_2': make_imagenet(blocks.BottleneckBlock, 3, 4, 6, 3, width_per_group=128),
  'wide_resnet101_2': make_imagenet(blocks.BottleneckBlock, 3, 4, 23, 3, width_per_group=128),
  'seresnet18': make_imagenet(blocks.BasicBlock, 2, 2, 2, 2, se=True),
  'seresnet50': make_imagenet(blocks.BottleneckBlock, 3, 4, 6, 3, se=True),
  'preact_resnet18': make_imagenet(blocks.PreactBasicBlock, 2, 2, 2, 2),
  'preact_resnet50': make_imagenet(blocks.PreactBottleneckBlock, 3, 4, 6, 3),
  'resnet20': make_thin(20),
  'resnet32': make_thin(32),
  'resnet44': make_thin(44),
  'resnet56': make_thin(56),
  'resnet110': make_thin(110),
  'preact_resnet20': make_thin(20, blocks.PreactBasicBlock),
  'preact_resnet32': make_thin(32, blocks.PreactBasicBlock),
  'preact_resnet44': make_thin(44, blocks.PreactBasicBlock),
  'preact_resnet56': make_thin(56, blocks.PreactBasicBlock),
  'preact_resnet110': make_thin(110, blocks.PreactBasicBlock),
  'preact_resnet164': make_thin(164, blocks.PreactBottleneckBlock, shortcut='projection'),
  'resnet8_speedrun': functools.partial(
    ResNet,
    (1, 1, 1),
    (64, 128, 256),
    speedrun.PoolBlock,
    stem_type='whitening',
    shortcut='pad',  # there are none
    act='gelu',
    bn_momentum=0.6,
    bn_scale=False,
    pool='max',
    logit_scale=1 / 9,
  ),
  'wrn16_8': make_wide(16, 8),
  'wrn28_10': make_wide(28, 10),
}
