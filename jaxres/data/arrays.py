"""What a source is: splits in host memory or encoded. And the sources that need no download."""

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxres.data import order
from jaxres.errors import InputError
from jaxres.files import load_npz
from jaxres.paths import user_path


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

  def take(self, index: np.ndarray) -> 'Encoded':
    """Return the examples at ``index``, int or bool ``[M]``."""
    return self._replace(labels=self.labels[index], keys=self.keys[index])

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


def read_digits() -> Source:
  """Return scikit-learn's handwritten digits: 1,797 grey images of 8x8, a stratified fifth of them held out.

  Source: Alpaydin and Kaynak, UCI "Optical Recognition of Handwritten Digits". Intensities 0..16 become 0..255.
  """
  from sklearn.datasets import load_digits  # takes a second: only where it is asked for

  digits = load_digits()
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  both = Arrays(images, digits.target.astype(np.int32))
  held_out = np.zeros(len(images), bool)
  held_out[order.stratified(both.labels, len(images) // 5, seed=0)] = True
  return Source(both.take(~held_out), both.take(held_out), tuple('0123456789'))


def read_npz(path: str | None) -> Source:
  """Return the data set in an ``.npz`` file.

  Args:
    path: a file with ``train_x`` and ``test_x``, uint8 ``[N, H, W, C]`` or ``[N, H, W]``, and ``train_y`` and
      ``test_y``, int ``[N]``; optionally ``val_x`` and ``val_y``, and ``class_names``, str ``[K]``.

  Raises:
    InputError: the file is missing or unreadable, or an array is missing or has another shape or dtype.
  """
  if not path:
    raise InputError("data.path: data.name='arrays' reads an .npz file; give its path")
  path = str(user_path(path, 'data.path'))
  if os.path.isdir(path):
    raise InputError(f'data.path: {path} is a folder; expected an .npz file, or set data.name=folder')
  if not os.path.exists(path):
    raise InputError(f'data.path: no such file: {path}')
  try:
    content = load_npz(pathlib.Path(path))
  except ValueError as error:
    raise InputError(f'{path}: not a readable .npz file: {error}') from None
  train, test = (_split(path, content, split) for split in ('train', 'test'))
  val = _split(path, content, 'val') if 'val_x' in content or 'val_y' in content else None
  for split, other in (('test', test), ('val', val)):
    if other and train.images.shape[1:] != other.images.shape[1:]:
      found = f'{train.images.shape[1:]} and {other.images.shape[1:]}'
      raise InputError(f'{path}: train_x and {split}_x hold images of different shapes: {found}')
  if content.get('class_names', np.empty(1)).ndim != 1:
    raise InputError(f'{path}: class_names: expected a list of names, found {content["class_names"]!r}')
  names = content['class_names'] if 'class_names' in content else _numbered_classes(path, train)
  if len(names) <= train.labels.max():
    raise InputError(
      f'{path}: class_names has {len(names)} names, and a training example has label {train.labels.max()}'
    )
  return Source(train, test, tuple(map(str, names)), val)


def _numbered_classes(path: str, train: Arrays) -> range:
  found = np.unique(train.labels)
  gaps = np.flatnonzero(found != np.arange(len(found)))
  if len(gaps):
    expected = 'expected 0, 1, ... with no gap, or an array class_names beside them'
    raise InputError(f'{path}: no training example has label {gaps[0]}, one has {found[gaps[0]]}; {expected}')
  return range(len(found))


def _split(path: str, content: dict[str, np.ndarray], split: str) -> Arrays:
  for name in (f'{split}_x', f'{split}_y'):
    if name not in content:
      found = ', '.join(content) or 'nothing'
      raise InputError(f'{path}: no array {name}; found {found}; expected train_x, train_y, test_x, test_y')
  images, labels = content[f'{split}_x'], content[f'{split}_y']
  if images.ndim == 3:
    images = images[..., None]
  if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
    found = f'{images.dtype} {list(images.shape)}'
    raise InputError(f'{path}: {split}_x: expected uint8 [N, H, W, C] with values 0..255, found {found}')
  if labels.dtype.kind not in 'iu' or labels.shape != images.shape[:1]:
    found = f'{labels.dtype} {list(labels.shape)}'
    raise InputError(f'{path}: {split}_y: expected integers [{len(images)}], found {found}')
  if not len(images):
    raise InputError(f'{path}: {split}_x is empty; expected at least one image')
  return Arrays(images, labels.astype(np.int64).astype(np.int32, casting='unsafe'))
