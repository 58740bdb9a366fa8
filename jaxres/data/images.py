"""Encoded images to pixels: one at a time when they are needed, or all of a split."""

import concurrent.futures
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxres.data import decode
from jaxres.data.types import Arrays, Encoded
from jaxres.errors import InputError, print_status

_CHUNK = 64  # images that a thread takes at a time


class Images:
  """The images of one encoded split, decoded when asked for; threads may share it.

  A training image that cannot be decoded is replaced by the next one of the split that can, as long as there are no
  more than ``max_bad`` of them: which one stands in depends on nothing but the images.

  Attributes:
    size: N, the number of examples.
  """

  def __init__(
    self,
    split: Encoded,
    image_size: int | None,
    *,
    center_crop: float = 1.0,
    crop_scale: Sequence[float] = (),
    max_bad: int = 0,
  ):
    self.split = split
    self.size = len(split.labels)
    self.image_size = image_size
    self.image_shape = (image_size or 0, image_size or 0, 3)  # 0: each as it is
    self.center_crop = center_crop
    self.crop_scale = crop_scale
    self.max_bad = max_bad
    self._bad: dict[int, str] = {}
    self._lock = threading.Lock()

  def get(self, index: int, draws: Iterable[Sequence[float]] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels, uint8 ``[size, size, 3]``, and the label of example ``index``.

    Args:
      index: in ``[0, N)``.
      draws: of ``decode.crop_box``, for a random crop where ``crop_scale`` asks for one; None for the center.

    Raises:
      InputError: more than ``max_bad`` images cannot be decoded; names the last of them.
    """
    for at in range(index, index + self.size):
      at %= self.size
      if at not in self._bad:
        try:
          return self._decode(at, draws), self.split.labels[at]
        except decode.BadImageError as error:
          self._count(at, str(error))
    raise InputError(self.split.name_of(index), f'none of the {self.size} images can be decoded')

  def _decode(self, at: int, draws: Iterable[Sequence[float]] | None) -> np.ndarray:
    try:
      data = self.split.read_at(at)
    except OSError as error:
      raise decode.BadImageError(f'cannot read it: {error.strerror or error}') from error
    if draws is None or not self.crop_scale or self.image_size is None:
      return decode.decode_image(data, self.image_size, self.center_crop)
    return decode.decode_crops(data, self.image_size, self.crop_scale, draws)

  def _count(self, at: int, reason: str) -> None:
    """Note a bad example."""
    with self._lock:
      if at in self._bad:
        return
      if len(self._bad) >= self.max_bad:
        fix = f'repair or remove it; data.max_bad is {self.max_bad}'
        raise InputError(self.split.name_of(at), reason, fix=fix)
      self._bad[at] = reason
      print_status(
        f'bad training example {len(self._bad)} of at most {self.max_bad}: {self.split.name_of(at)}: {reason}'
      )


def find_bad(split: Encoded, workers: int | None) -> Iterator[tuple[int, str]]:
  """Yield place and reason of every example that cannot be decoded, in their order."""

  def check(at: int) -> str | None:
    try:
      decode.check(split.read_at(at))
    except decode.BadImageError as error:
      return str(error)
    except OSError as error:
      return f'cannot read it: {error.strerror or error}'
    return None

  pool = concurrent.futures.ThreadPoolExecutor(workers, 'check')
  try:
    for at, reason in enumerate(pool.map(check, range(len(split.labels)))):
      if reason is not None:
        yield at, reason
  finally:
    pool.shutdown(cancel_futures=True)


def drop_bad(split: Encoded, part: str, max_bad: int, workers: int) -> Encoded:
  """Return the examples of an evaluation split that can be decoded: a bad one is reported before the training starts.

  Args:
    split: to be checked.
    part: its name, for messages.
    max_bad: leave out up to as many examples.
    workers: threads.

  Raises:
    InputError: there are more bad ones; names the last of them.
  """
  good = np.ones(len(split.labels), bool)
  for number, (at, reason) in enumerate(find_bad(split, workers), 1):
    if number > max_bad:
      limit = f'data.max_bad is {max_bad} a split'
      raise InputError(f'{split.name_of(at)}, in the {part} split', reason, fix=f'repair or remove it; {limit}')
    good[at] = False
    print_status(f'bad {part} example {number} of at most {max_bad}, left out: {split.name_of(at)}: {reason}')
  return split.take(good) if not good.all() else split


def decode_all(images: Images, workers: int) -> Arrays:
  """Decode every image, with ``workers`` threads.

  Raises:
    InputError: an image cannot be decoded, they differ in size and no ``image_size`` was given, or they do not fit
      into memory.
  """
  shape = images.get(0)[0].shape
  try:
    pixels = np.empty((images.size, *shape), np.uint8)
  except MemoryError:
    size = images.size * np.prod(shape) / 1e9
    raise InputError(
      'data.pipeline', f'{images.size:,} images take {size:.0f} GB', fix='set data.pipeline=stream'
    ) from None
  labels = np.empty_like(images.split.labels)

  def fill(start: int) -> None:
    for at in range(start, min(start + _CHUNK, images.size)):
      image, labels[at] = images.get(at)
      if image.shape != shape:
        problem = f'{image.shape[1]}x{image.shape[0]} pixels, and the first has {shape[1]}x{shape[0]}'
        raise InputError(images.split.name_of(at), f'it has {problem}', fix='set data.image_size')
      pixels[at] = image

  pool = concurrent.futures.ThreadPoolExecutor(workers, 'decode')
  try:
    for _ in pool.map(fill, range(0, images.size, _CHUNK)):
      pass
  finally:
    pool.shutdown(cancel_futures=True)
  return Arrays(pixels, labels)
