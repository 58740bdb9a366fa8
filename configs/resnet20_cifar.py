"""ResNet-20 on CIFAR-10 as the paper trains it (He et al. 2015, section 4.2): 64k steps of 128 images.

python main.py --config configs/resnet20_cifar.py --workdir runs/resnet20

45,000 training and 5,000 validation images; the learning rate falls tenfold after 32k and 48k steps; weight decay
1e-4 on every parameter; images padded by 4 black pixels, cropped and flipped. The paper reports 91.25 % top-1; not
measured here yet.
"""

from ml_collections import ConfigDict

from jaxres import config as config_lib

STEPS_PER_EPOCH = 45_000 / 128


def get_config() -> ConfigDict:
  """Return the config."""
  return config_lib.make(
    model=dict(name='resnet20'),
    data=dict(name='cifar10', download=True, batch_size=128, val=0.1),
    augment=dict(crop_pad=4, flip=True),
    optim=dict(
      name='sgd',
      lr=0.1,
      momentum=0.9,
      weight_decay=1e-4,
      no_decay=(),
      schedule='step',
      milestones=(32_000 / STEPS_PER_EPOCH, 48_000 / STEPS_PER_EPOCH),
    ),
    train=dict(epochs=64_000 / STEPS_PER_EPOCH),
  )
