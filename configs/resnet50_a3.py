"""ResNet-50 on ImageNet in 100 epochs of 160 px: procedure A3 of "ResNet strikes back", 78.1 % top-1 at 224 px there.

python main.py --config configs/resnet50_a3.py --workdir runs/a3

Wightman et al. 2021, arXiv 2110.00476, table 2: LAMB, batches of 2048, learning rate 8e-3, weight decay 0.02, 5 epochs
of warm-up, one cosine cycle; binary cross-entropy with both classes of a mixed image as targets; mixup 0.1 and
CutMix 1.0; RandAugment of 2 operations with magnitude 6 of 10; tested on the center 95 % at 224 px. The operations are
torchvision's, with no noise in the magnitude. For GPUs; where memory is short, --config.train.accumulate=4. Not
measured here yet. Folders of images: as configs/resnet50_imagenet.py.
"""

from ml_collections import ConfigDict

from jaxres import config as config_lib


def get_config() -> ConfigDict:
  """Return the config."""
  return config_lib.make(
    model=dict(name='resnet50', zero_init_residual=True),
    data=dict(
      name='imagenet2012',
      pipeline='stream',
      batch_size=2048,
      image_size=160,
      eval_image_size=224,
      center_crop=0.95,
      workers=16,
    ),
    augment=dict(
      flip=True, policy='randaugment', randaugment_layers=2, randaugment_magnitude=18, fill=124, mixup=0.1, cutmix=1.0
    ),
    optim=dict(name='lamb', lr=8e-3, eps=1e-6, weight_decay=0.02, warmup_epochs=5),
    train=dict(epochs=100, loss='sigmoid_xent', target_threshold=0.2, eval_batch_size=512),
  )
