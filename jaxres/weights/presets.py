"""What is done to an image before weights that do not say it: presets by name, and public files that are known."""

import pathlib

from jaxres.data.statistics import IMAGENET, STATISTICS
from jaxres.errors import check_word
from jaxres.files import sha256_of
from jaxres.weights import published
from jaxres.weights.preprocessing import Preprocessing

# torchvision's evaluation of its published weights, by recipe: https://pytorch.org/vision/stable/models.html
IMAGE_SIZE, RESIZED = 224, {'v1': 256, 'v2': 232}
_CIFAR = (32, 32)
PRESETS = {
  'imagenet': Preprocessing(*IMAGENET, (IMAGE_SIZE,) * 2, IMAGE_SIZE / RESIZED['v1']),
  'imagenet-v2': Preprocessing(*IMAGENET, (IMAGE_SIZE,) * 2, IMAGE_SIZE / RESIZED['v2']),
  'cifar10': Preprocessing(*STATISTICS['cifar10'], _CIFAR, 1.0),
  'cifar100': Preprocessing(*STATISTICS['cifar100'], _CIFAR, 1.0),
  'cifar-imagenet': Preprocessing(*IMAGENET, _CIFAR, 1.0),  # 32 pixels by ImageNet's statistics
}
# Public files by the first digits of their SHA-256, which are in their names, and the preset that they were trained by.
# https://github.com/akamaster/pytorch_resnet_cifar10, pretrained_models/ and trainer.py, commit d5489e8.
FILES = dict.fromkeys(('12fca82f', 'd509ac18', '014dd654', '4bfd9763', '1d1ed7c2'), 'cifar-imagenet')


def find(name: str) -> Preprocessing:
  """Return the preset called ``name``.

  Raises:
    InputError: there is none of that name.
  """
  check_word('--preset', name, PRESETS, 'preset')
  return PRESETS[name]


def recognize(place: str, path: pathlib.Path) -> str | None:
  """Return the name of the preset of torchvision's published weights, or of a public file that is known; else None.

  Args:
    place: a name of ``published.DIGITS``, or a path.
    path: of the file; nothing need be there.
  """
  if path.is_file():
    known = published.DIGITS | {digits: digits for digits in FILES}
    named = [name for name, digits in known.items() if digits in path.name]
    place = next((name for name in named if sha256_of(path).startswith(known[name])), '')
  if place in FILES:
    return FILES[place]
  if place not in published.DIGITS:
    return None
  return 'imagenet-v2' if place.endswith('-v2') else 'imagenet'
