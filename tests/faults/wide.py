"""A config of a network whose activations are large: 64 KB an image and layer."""

import functools

from ml_collections import ConfigDict

from jaxres.models import blocks, resnet
from tests.faults import tiny


def get_config() -> ConfigDict:
  """Return the config."""
  options = tiny.get_config()
  resnet.MODELS['wide'] = functools.partial(resnet.ResNet, (1,), (256,), blocks.BasicBlock, stem_type='cifar')
  options.model.name = 'wide'
  options.train.epochs = 2.0
  return options
