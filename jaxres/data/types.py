"""What a data source hands over: splits of arrays, or of encoded images. And what their labels are."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, UInt8

from jaxres.errors import InputError

Image = UInt8[Array, 'H W C']
Images = UInt8[Array, 'B H W C']
MAX_LABEL = 2**31 - 1


class Arrays(NamedTuple):
  """One split in host memory."""

  images: np.ndarray  # uint8 [N, H, W, C]
  labels: np.ndarray  # int32 [N], or as the task's ``Labels`` says

  def take(self, index: np.ndarray) -> 'Arrays':
    """Return the examples at ``index``, int or bool ``[M]``."""
    return Arrays(self.images[index], self.labels[index])


class Encoded(NamedTuple):
  """One split of encoded images, each read and decoded on demand; threads may read at once."""

  labels: np.ndarray  # int32 [N], or as the task's ``Labels`` says
  keys: np.ndarray  # int64 [N]: what ``name`` and ``read`` take for each example
  name: Callable[[int], str]  # of an example, for messages
  read: Callable[[int], bytes]  # raises OSError
  names: Sequence[str] | None = None  # by key, from the place of the set: held-out examples are drawn by them
  size: Callable[[int], int] | None = None  # of a key, in bytes, where that costs no reading; -1 where there is no file

  def take(self, index: np.ndarray) -> 'Encoded':
    """Return the examples at ``index``, int or bool ``[M]``."""
    return self._replace(labels=self.labels[index], keys=self.keys[index])

  @property
  def order_names(self) -> list[str] | None:
    """Return the names of the examples in their order; None where they are drawn by their place."""
    return None if self.names is None else [self.names[key] for key in self.keys.tolist()]

  def name_of(self, at: int) -> str:
    """Return the name of the example at place ``at``."""
    return self.name(int(self.keys[at]))

  def read_at(self, at: int) -> bytes:
    """Return the encoded image of the example at place ``at``.

    Raises:
      OSError: it cannot be read.
    """
    return self.read(int(self.keys[at]))


Split = Arrays | Encoded


class Source(NamedTuple):
  """A data set as published: its splits and the names of its classes, in label order."""

  train: Split
  test: Split | None  # None where ``data.test`` is 'none'
  class_names: tuple[str, ...]
  val: Split | None = None  # where the set comes with one


class Labels(NamedTuple):
  """What the labels of a data set are. A task says it; the data asks, and knows nothing else of them.

  Attributes:
    kind: in the plural, for messages, such as ``'class numbers'``.
    dtype: ``'int32'`` or ``'float32'``.
    rank: axes of the label of one example: 0 is a number, 1 a vector, 2 a map of the image's pixels.
    is_wrong: ``(labels [N, ...], class_names)`` to bool ``[N]``: which of them no loss can use.
    expected: of the names, to what a label must be, for messages.
    are_classes: whether a label is the number of a class: then draws are stratified, and classes can be chosen.
    soften: ``(labels [B, ...], K)``, traced and with the number of names, to float32 ``[B, ...]`` that may be averaged,
      as mixup does; None where they may not be.
  """

  kind: str
  dtype: str
  rank: int
  is_wrong: Callable[[np.ndarray, Sequence[str]], np.ndarray]
  expected: Callable[[Sequence[str]], str]
  are_classes: bool = False
  soften: Callable[[jax.Array, int], jax.Array] | None = None

  @property
  def shape(self) -> str:
    """Return dtype and axes in words, such as ``int32 [N]``."""
    return f'{self.dtype} {("[N]", "[N, K]", "[N, H, W]")[self.rank]}'

  def convert(self, labels: np.ndarray, image_shape: Sequence[int], where: str, fix: str = '') -> np.ndarray:
    """Return the labels of N images as ``dtype``.

    Args:
      labels: of any type; ``[N, ...]``.
      image_shape: N, H, W, C.
      where: they are from, for messages.
      fix: how they become what is expected, where that is known.

    Raises:
      InputError: they are of another type or shape.
    """
    shape = (image_shape[:1], (*image_shape[:1], *labels.shape[1:2]), image_shape[:3])[self.rank]
    kinds = 'iu' if self.dtype == 'int32' else 'biuf'
    if labels.dtype.kind not in kinds or labels.shape != tuple(shape) or labels.ndim != 1 + self.rank:
      numbers = 'integers' if self.dtype == 'int32' else 'numbers'
      axes = (f'{image_shape[0]}', f'{image_shape[0]}, K', ', '.join(map(str, image_shape[:3])))[self.rank]
      expected = f'{numbers} [{axes}]'
      raise InputError(where, expected=expected, found=f'{labels.dtype} {list(labels.shape)}{fix}')
    if self.dtype == 'int32' and labels.size and (labels.max() > MAX_LABEL or labels.min() < -MAX_LABEL):
      raise InputError(where, expected='labels from 0 on', found=f'{labels.min()} to {labels.max()}')  # would wrap
    return labels.astype(self.dtype)

  def strata(self, labels: np.ndarray) -> np.ndarray:
    """Return what draws are stratified by, int ``[N]``: the classes, or one group of all examples."""
    return labels if self.are_classes else np.zeros(len(labels), np.int32)


def is_not_finite(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Return which labels hold what is no finite number, bool ``[N]``."""
  return np.array(~np.isfinite(labels).reshape(len(labels), -1).all(axis=1))


def is_no_class(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Return which labels hold a number that is of none of the classes ``names``, bool ``[N]``."""
  return np.array(((labels < 0) | (labels >= len(names))).reshape(len(labels), -1).any(axis=1))


def describe_classes(names: Sequence[str]) -> str:
  """Return what the number of a class may be, in words."""
  return f'0 to {len(names) - 1} ({len(names)} classes)'


def as_they_are(labels: jax.Array, count: int) -> jax.Array:
  """Return ``labels``, float32, which may be averaged."""
  return labels


CLASSES = Labels(  # one of several for each image
  'class numbers', 'int32', 0, is_no_class, describe_classes, are_classes=True, soften=jax.nn.one_hot
)
NUMBERS = Labels('numbers', 'float32', 0, is_not_finite, lambda _: 'finite numbers', soften=as_they_are)
VECTORS = Labels('vectors', 'float32', 1, is_not_finite, lambda _: 'finite numbers', soften=as_they_are)
CLASS_MAPS = Labels('maps of class numbers', 'int32', 2, is_no_class, describe_classes)  # one for each pixel
