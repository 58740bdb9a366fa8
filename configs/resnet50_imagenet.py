"""ResNet-50 on ImageNet in 90 epochs: the recipe of torchvision's first weights, 76.13 % top-1 there.

python main.py --config configs/resnet50_imagenet.py --workdir runs/imagenet

Batches of 256, learning rate 0.1 divided by 10 every 30 epochs, weight decay 1e-4 on every parameter; random crops of
224 px, flipped; evaluation on the center 224 of 256 px (pytorch/vision, references/classification). TFDS's
imagenet2012 in array_record format, or folders of images, with --config.data.name=folder --config.data.path=DIR:
DIR/train/class/* and DIR/test/class/*. For GPUs; not measured here yet.
"""

from ml_collections import ConfigDict

from jaxres import config as config_lib


def get_config() -> ConfigDict:
  """Return the config."""
  return config_lib.make(
    model=dict(name='resnet50'),
    data=dict(name='imagenet2012', pipeline='stream', batch_size=256, image_size=224, center_crop=0.875, workers=16),
    augment=dict(flip=True),
    optim=dict(name='sgd', lr=0.1, momentum=0.9, weight_decay=1e-4, no_decay=(), schedule='step', milestones=(30, 60)),
    train=dict(epochs=90, eval_batch_size=256),
  )
