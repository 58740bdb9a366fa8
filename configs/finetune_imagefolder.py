"""torchvision's ResNet-50 fine-tuned on a folder of images, photos/class/* or photos/train/class/* with val/ beside it.

python main.py --config configs/finetune_imagefolder.py --workdir runs/photos50 --config.data.path=photos

Two epochs of the head alone, then of everything, with a learning rate that falls by a tenth from block to block towards
the stem. The weights (IMAGENET1K_V1, 98 MB) are downloaded once; images are normalized with ImageNet's statistics, as
those of any folder. No accuracy is measured here yet.
"""

from ml_collections import ConfigDict

from jaxres import config as config_lib


def get_config() -> ConfigDict:
  """Return the config."""
  return config_lib.make(
    model=dict(name='resnet50'),
    init=dict(source='torchvision:resnet50', new_head=True),
    data=dict(
      name='folder', pipeline='stream', batch_size=64, image_size=224, center_crop=0.875, crop_scale=(0.25, 1.0)
    ),
    augment=dict(flip=True),
    optim=dict(
      name='nesterov',
      lr=0.02,
      weight_decay=1e-4,
      warmup_epochs=1,
      layer_decay=0.9,
      frozen=('(?!head/).*',),
      unfreeze=(('.*', 2.0),),
    ),
    train=dict(epochs=12, label_smoothing=0.1, eval_batch_size=64),
  )
