"""ResNet-18 with the CIFAR stem on CIFAR-10: 30 epochs, one cosine cycle.

python main.py --config configs/resnet18_cifar.py --workdir runs/r18

For a GPU: on CPU an epoch takes a quarter of an hour. Not measured to its end yet.
"""

from ml_collections import ConfigDict

from jaxres import config as config_lib


def get_config() -> ConfigDict:
  """Return the config."""
  return config_lib.make(
    model=dict(name='resnet18', stem='cifar'),
    data=dict(name='cifar10', download=True, batch_size=512),
    augment=dict(crop_pad=4, pad_mode='reflect', flip=True),
    optim=dict(name='nesterov', lr=0.4, momentum=0.9, weight_decay=5e-4, warmup_epochs=5),
    train=dict(epochs=30),
  )
