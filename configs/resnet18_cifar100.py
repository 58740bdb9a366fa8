"""ResNet-18 with the CIFAR stem on CIFAR-100: 200 epochs, the recipe of weiaicunzai/pytorch-cifar100.

python main.py --config configs/resnet18_cifar100.py --workdir runs/cifar100

SGD with momentum, batches of 128, weight decay 5e-4 on every parameter, one epoch of warm-up, learning rate 0.1 times
0.2 after 60, 120 and 160 epochs; images padded by 4 black pixels, cropped, flipped and turned by up to 15 degrees.
That repository reports 75.61 % top-1. For a GPU; not measured here yet.
"""

from ml_collections import ConfigDict

from jaxres import config as config_lib


def get_config() -> ConfigDict:
  """Return the config."""
  return config_lib.make(
    model=dict(name='resnet18', stem='cifar'),
    data=dict(name='cifar100', download=True, batch_size=128),
    augment=dict(crop_pad=4, flip=True, rotate=15.0),
    optim=dict(
      name='sgd',
      lr=0.1,
      momentum=0.9,
      weight_decay=5e-4,
      no_decay=(),
      schedule='step',
      warmup_epochs=1,
      milestones=(60, 120, 160),
      gamma=0.2,
    ),
    train=dict(epochs=200),
  )
