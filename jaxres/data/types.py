"""What a data source hands over: splits of arrays, or of encoded images."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Arrays(NamedTuple):
  """One split in host memory."""

  images: np.ndarray  # uint8 [N, H, W, C]
  labels: np.ndarray  # int32 [N]

  def take(self, index: np.ndarray) -> 'Arrays':
    """Return the examples at ``index``, int or bool ``[M]``."""
    return Arrays(self.images[index], self.labels[index])


class Encoded(NamedTuple):
  """One split of encoded images, each read and decoded when it is asked for; threads may read at once."""

  labels: np.ndarray  # int32 [N]
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
  test: Split
  class_names: tuple[str, ...]
  val: Split | None = None  # where the set comes with one
