"""Means and standard deviations of images, channel by channel."""

import numpy as np

# The published channel means and standard deviations of the training splits, on the scale 0..1.
STATISTICS = {
  'cifar10': ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  'cifar100': ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as torchvision's models are trained with


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Return mean and standard deviation of each channel of uint8 ``[N, H, W, C]``, on the scale 0..1.

  A channel that never changes gets a standard deviation of 1.
  """
  levels = np.arange(256) / 255
  counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
  share = counts / counts.sum(axis=1, keepdims=True)
  mean = share @ levels
  std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
  return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
