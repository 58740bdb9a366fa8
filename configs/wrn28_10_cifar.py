"""WRN-28-10 on CIFAR-10 as its paper trains it (Zagoruyko and Komodakis 2016, arXiv 1605.07146, section 3).

python main.py --config configs/wrn28_10_cifar.py --workdir runs/wrn

SGD with Nesterov momentum, batches of 128, weight decay 5e-4 on every parameter, learning rate 0.1 times 0.2 after 60,
120 and 160 of 200 epochs; images padded by 4 mirrored pixels, cropped and flipped. The paper reports 96.00 % top-1 as
the median of 5 runs, and 96.11 % with --config.model.dropout=0.3. For a GPU; not measured here yet.
"""

from ml_collections import ConfigDict

from jaxres import config as config_lib


def get_config() -> ConfigDict:
  """Return the config."""
  return config_lib.make(
    model=dict(name='wrn28_10'),
    data=dict(name='cifar10', download=True, batch_size=128),
    augment=dict(crop_pad=4, pad_mode='reflect', flip=True),
    optim=dict(
      name='nesterov',
      lr=0.1,
      momentum=0.9,
      weight_decay=5e-4,
      no_decay=(),
      schedule='step',
      milestones=(60, 120, 160),
      gamma=0.2,
    ),
    train=dict(epochs=200),
  )
