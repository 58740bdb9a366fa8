"""What is done to an image before a network: kept beside its weights, so that a converted network gets equal inputs."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxres.errors import InputError

MAX_CHANNELS, MAX_SIZE = 1024, 1 << 16


class Preprocessing(NamedTuple):
  """The evaluation's way from a file to the input of a network.

  Attributes:
    mean: of each channel, of pixels between 0 and 1; it is subtracted.
    std: of each channel, of the same pixels; it divides.
    image_size: pixels, height and width of the input.
    center_crop: the share of the short side that is kept before the image is resized.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_size: tuple[int, int]
  center_crop: float


def parse(given: Any, where: str) -> Preprocessing:
  """Return ``given``, of JSON, checked.

  Raises:
    InputError: a field is missing or of another kind.
  """
  if not isinstance(given, Mapping) or {*given} != {*Preprocessing._fields}:
    raise InputError(where, expected=', '.join(Preprocessing._fields))
  mean, std, size, crop = (given[name] for name in Preprocessing._fields)
  for name, values in (('mean', mean), ('std', std)):
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_CHANNELS or not all(map(_is_number, values)):
      raise InputError(f'{where}: {name}', expected='a finite number for each channel')
  if len(mean) != len(std) or min(std) <= 0:
    raise InputError(f'{where}: std', expected=f'{len(mean)} numbers greater than 0')
  if not isinstance(size, list) or len(size) != 2 or any(type(n) is not int or not 1 <= n <= MAX_SIZE for n in size):
    raise InputError(f'{where}: image_size', expected=f'height and width in pixels, 1 to {MAX_SIZE}')
  if not _is_number(crop) or not 0 < crop <= 1:
    raise InputError(f'{where}: center_crop', expected='a share greater than 0, up to 1')
  return Preprocessing(tuple(map(float, mean)), tuple(map(float, std)), (size[0], size[1]), float(crop))


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)
