"""What is done to an image before a network: kept beside its weights, so that a converted network sees the same."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxres import config as config_lib
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


def of_run(run: pathlib.Path) -> Preprocessing | None:
  """Return the preprocessing of the run in ``run``; None where a jaxres made it that did not write its data.

  Raises:
    InputError: its config or the description of its data cannot be read.
  """
  if not (run / 'data.json').exists():
    return None
  try:
    fields = config_lib.to_dict(config_lib.complete(json.loads((run / 'config.json').read_text())))['data']
    info = json.loads((run / 'data.json').read_text())
    if {'image_shape', 'mean', 'std'} - {*info}:
      return None  # written by an older jaxres
    height, width, _ = info['image_shape']
    size = fields['eval_image_size'] or fields['image_size']
    given = {
      'mean': info['mean'],
      'std': info['std'],
      'image_size': [size, size] if size else [height, width],
      'center_crop': fields['center_crop'] if size else 1.0,
    }
  except InputError:
    raise
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise InputError(f'{run}/data.json: no image_shape, mean and std there ({error!s:.80})') from None
  return parse(given, f'{run}/data.json')


def of_description(path: pathlib.Path) -> Preprocessing | None:
  """Return the preprocessing in a ``model.json``; None where it has none.

  Raises:
    InputError: it cannot be read.
  """
  try:
    given = json.loads(path.read_text()).get('preprocessing')
  except (OSError, ValueError, AttributeError, RecursionError) as error:
    raise InputError(f'{path}: cannot be read: {error!s:.80}') from None
  return None if given is None else parse(given, f'{path}: preprocessing')


def parse(given: Any, where: str) -> Preprocessing:
  """Return ``given``, of JSON, checked.

  Raises:
    InputError: a field is missing or of another kind.
  """
  if not isinstance(given, Mapping) or {*given} != {*Preprocessing._fields}:
    raise InputError(f'{where}: expected {", ".join(Preprocessing._fields)}')
  mean, std, size, crop = (given[name] for name in Preprocessing._fields)
  for name, values in (('mean', mean), ('std', std)):
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_CHANNELS or not all(map(_is_number, values)):
      raise InputError(f'{where}: {name}: expected a finite number for each channel')
  if len(mean) != len(std) or min(std) <= 0:
    raise InputError(f'{where}: std: expected {len(mean)} numbers greater than 0')
  if not isinstance(size, list) or len(size) != 2 or any(type(n) is not int or not 1 <= n <= MAX_SIZE for n in size):
    raise InputError(f'{where}: image_size: expected height and width in pixels, 1 to {MAX_SIZE}')
  if not _is_number(crop) or not 0 < crop <= 1:
    raise InputError(f'{where}: center_crop: expected a share greater than 0, up to 1')
  return Preprocessing(tuple(map(float, mean)), tuple(map(float, std)), (size[0], size[1]), float(crop))


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)
