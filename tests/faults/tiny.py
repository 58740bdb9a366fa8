"""A config of the smallest run there is: a network of one block on 128 digits."""

import functools

from ml_collections import ConfigDict

from jaxres import config as config_lib
from jaxres.models import blocks, resnet


def get_config() -> ConfigDict:
  """Return the config."""
  resnet.MODELS['tiny'] = functools.partial(resnet.ResNet, (1,), (8,), blocks.BasicBlock, stem_type='cifar')
  return config_lib.make(
    model=dict(name='tiny'),
    data=dict(name='digits', batch_size=16, limit=128, val=0.1),
    augment=dict(crop_pad=1),
    optim=dict(name='nesterov', lr=0.1, warmup_epochs=1),
    train=dict(epochs=6, log_every_steps=3, ema=0.9),
    checkpoint=dict(keep_latest=2),
  )
