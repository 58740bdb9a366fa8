"""ResNet-18 from scratch on a folder of images, photos/class/* or photos/train/class/* with val/ or test/ beside it.

python main.py --config configs/resnet18_imagefolder.py --workdir runs/photos --config.data.path=photos

Crops of 224 px at 8 % to 100 % of the area, flipped, read ahead of the device; one cosine cycle of 60 epochs, with
label smoothing. A small set (--config.data.image_size=64 --config.model.stem=cifar) trains on a CPU. The recipe is
torchvision's ResNet-18 (lr 0.1, batch 256, weight decay 1e-4) with half the batch; no accuracy is measured here yet.
"""

from ml_collections import ConfigDict

from jaxres import config as config_lib


def get_config() -> ConfigDict:
  """Return the config."""
  return config_lib.make(
    model=dict(name='resnet18'),
    data=dict(name='folder', pipeline='stream', batch_size=128, image_size=224, center_crop=0.875),
    augment=dict(flip=True),
    optim=dict(name='nesterov', lr=0.05, momentum=0.9, weight_decay=1e-4, warmup_epochs=5),
    train=dict(epochs=60, label_smoothing=0.1, eval_batch_size=128),
  )
