"""Images that Python hands over: arrays and tensors of any library, as uint8 with the channels last."""

from typing import Any

import numpy as np

from jaxres.errors import InputError

CHANNELS = (1, 3)  # of a tensor whose first axis is theirs
EXPECTED = 'images uint8 [B, H, W, C] or [H, W, C], or floats from 0 to 1'


def as_array(value: Any, name: str) -> np.ndarray:
  """Return an array or a tensor of any library as NumPy's, on the host.

  Args:
    value: what NumPy takes for an array, or a tensor with ``detach`` and ``cpu`` as torch's.
    name: of the argument, for the error.

  Raises:
    InputError: it is no array.
  """
  if hasattr(value, 'detach') and hasattr(value, 'cpu'):
    value = value.detach().cpu()
  try:
    array = np.asarray(value)
  except (TypeError, ValueError) as error:
    raise InputError(name, expected='an array', found=f'{type(value).__name__}: {error}') from None
  if array.dtype.kind not in 'biuf':
    raise InputError(name, expected='an array of numbers', found=f'{type(value).__name__}')
  return array


def is_channels_first(value: Any, axis: int) -> bool:
  """Return whether ``value`` is a tensor of torch whose channels are at ``axis``, as torch has images."""
  shape = tuple(getattr(value, 'shape', ()))
  last = shape[-1] if shape else 0
  return hasattr(value, 'permute') and len(shape) == axis + 3 and shape[axis] in CHANNELS and last not in CHANNELS


def to_uint8(images: np.ndarray, name: str) -> np.ndarray:
  """Return levels 0..255 as uint8: as they are, or rounded from floats between 0 and 1.

  Args:
    images: uint8, or float of any width.
    name: of the argument, for the error.

  Raises:
    InputError: they are of another dtype, or a float is not between 0 and 1.
  """
  if images.dtype == np.uint8:
    return images
  if images.dtype.kind != 'f':
    fix = 'use .astype(np.uint8)' if images.size and images.min() >= 0 and images.max() <= 255 else ''
    raise InputError(name, expected=EXPECTED, found=f'{images.dtype} {list(images.shape)}', fix=fix)
  if images.size and not (images.min() >= 0 and images.max() <= 1):  # NaN too
    values = f'{images.dtype} from {images.min():g} to {images.max():g}'
    fix = 'give images as they are, not normalized: floats from 0 to 1, or np.rint(images).astype(np.uint8) of 0..255'
    raise InputError(name, expected='floats from 0 to 1', found=values, fix=fix)
  return np.rint(np.float32(255) * images.astype(np.float32)).astype(np.uint8)


def to_images(value: Any, name: str) -> np.ndarray:
  """Return a batch of images, uint8 ``[B, H, W, C]``.

  Args:
    value: an array or tensor ``[B, H, W, C]`` or ``[H, W, C]``, uint8 or floats from 0 to 1; of torch also with the
      channels first.
    name: of the argument, for the error.

  Raises:
    InputError: it is of another shape or dtype.
  """
  array = as_array(value, name)
  if array.ndim in (3, 4) and is_channels_first(value, array.ndim - 3):
    array = np.moveaxis(array, -3, -1)
  if array.ndim not in (3, 4) or 0 in array.shape[-3:]:
    raise InputError(name, expected=EXPECTED, found=f'{array.dtype} {list(array.shape)}')
  return to_uint8(array if array.ndim == 4 else array[None], name)
