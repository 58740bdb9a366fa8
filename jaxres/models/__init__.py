"""Models by name: ``create`` one, or ``list_models``.

from jaxres import models

model = models.create('resnet50', num_classes=1000)
variables = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False)
logits = model.apply(variables, images, train=False)
logits, updates = model.apply(variables, images, train=True, mutable=['batch_stats'])
stages = model.apply(variables, images, train=False, method='features')
"""

import builtins
from typing import Literal

from jaxres import config as config_lib
from jaxres.errors import check_range, check_word
from jaxres.models.dtypes import resolve_dtype
from jaxres.models.resnet import ACTIVATIONS, BN_MODES, MODELS, SHORTCUTS, ResNet

__all__ = ['ResNet', 'create', 'list_models']


def create(
  name: str = 'resnet50',
  *,
  num_classes: int | None = None,
  stem: Literal['cifar', 'cifar_pool', 'imagenet', 'deep'] | None = None,
  shortcut: Literal['projection', 'average', 'pad'] | None = None,
  zero_init_residual: bool = False,
  act: Literal['relu', 'silu', 'gelu', 'leaky_relu'] | None = None,
  dropout: float = 0.0,
  stochastic_depth: float = 0.0,
  remat: bool = False,
  bn: Literal['global', 'per_device', 'frozen'] = 'global',
  dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto',
) -> ResNet:
  """Return the model called ``name``, without variables.

  Args:
    name: one of ``list_models()``; spelled as in torchvision, the thin CIFAR networks as in the paper.
    num_classes: width of the logits; 1000 by default.
    stem: ``'imagenet'`` (7x7 stride 2, max-pool), ``'deep'`` (three 3x3, max-pool), ``'cifar'`` (3x3) or
      ``'cifar_pool'`` (3x3, max-pool); the published one by default.
    shortcut: where the shape changes: ``'projection'``, ``'average'`` (average-pool, then projection) or ``'pad'``
      (option A); the published one by default.
    zero_init_residual: start each block as the identity.
    act: the activation; the published one by default, mostly ReLU.
    dropout: rate, before the classifier; in wide networks (``wrn...``) inside each block instead, as published.
    stochastic_depth: rate at which examples skip the last block; it falls in proportion to depth towards the first.
    remat: compute blocks again for the gradient: less memory, more time.
    bn: what BatchNorm normalizes by in training: the statistics of the global batch (``'global'``), of the part that a
      device has (``'per_device'``: the devices wait for each other once a step), or its running ones, which then stay
      as they are (``'frozen'``).
    dtype: of the arithmetic; ``'auto'`` is bfloat16 on GPU and TPU, float32 on CPU.

  Returns:
    A module that maps images, float ``[B, H, W, C]``, to logits, float32 ``[B, num_classes]``.

  Raises:
    InputError: a name is unknown, or a number is out of range.
  """
  config_lib.check_types('model', locals())
  check_word('model.name', name, MODELS, 'model')
  check_word('model.stem', stem, [None, 'cifar', 'cifar_pool', 'imagenet', 'deep'], 'stem')
  check_word('model.shortcut', shortcut, [None, *SHORTCUTS], 'shortcut')
  check_word('model.act', act, [None, *ACTIVATIONS], 'act')
  check_word('model.bn', bn, BN_MODES, 'bn')
  check_range('model.dropout', dropout, low=0, below=1)
  check_range('model.stochastic_depth', stochastic_depth, low=0, below=1)
  check_range('model.num_classes', num_classes, low=1)
  given = {'num_classes': num_classes, 'stem_type': stem, 'shortcut': shortcut, 'act': act}
  options = {key: value for key, value in given.items() if value is not None}
  return MODELS[name](
    zero_init_residual=zero_init_residual,
    dtype=resolve_dtype(dtype),
    dropout=dropout,
    stochastic_depth=stochastic_depth,
    remat=remat,
    bn=bn,
    **options,
  )


def list_models() -> builtins.list[str]:
  """Return the names of all models."""
  return builtins.list(MODELS)
