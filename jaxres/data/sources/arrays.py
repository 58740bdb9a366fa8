"""Sources that are arrays: scikit-learn's digits, and ``.npz`` files."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxres.data import sampler
from jaxres.data.splits import say_lookalikes
from jaxres.data.types import CLASSES, Arrays, Labels, Source
from jaxres.errors import InputError, print_status
from jaxres.npz import load_npz
from jaxres.paths import shorten, user_path

MAX_CHANNELS = 4  # of an image whose axes are in doubt


def read_digits() -> Source:
  """Return scikit-learn's handwritten digits: 1,797 gray images of 8x8, a stratified fifth of them held out.

  Source: Alpaydin and Kaynak, UCI "Optical Recognition of Handwritten Digits". Intensities 0..16 become 0..255.
  """
  from sklearn.datasets import load_digits  # takes a second: imported where it is needed

  digits = load_digits()
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  both = Arrays(images, digits.target.astype(np.int32))
  held_out = np.zeros(len(images), bool)
  held_out[sampler.draw_stratified(both.labels, len(images) // 5, seed=0)] = True
  return Source(both.take(~held_out), both.take(held_out), tuple('0123456789'))


def read_npz(path: str | None, labels: Labels = CLASSES) -> Source:
  """Return the data set in an ``.npz`` file.

  Args:
    path: a file with ``train_x`` and ``test_x``, uint8 ``[N, H, W, C]`` or ``[N, H, W]``, and ``train_y`` and
      ``test_y``, int ``[N]`` or as ``labels`` says; optionally ``val_x`` and ``val_y``, ``class_names``, str ``[K]``,
      and ``channels``, an int: C, where the shape of the images leaves in doubt which axis it is.
    labels: what they are. Where the file names none: classes and the columns of vectors are called by their numbers,
      and a number ``'value'``.

  Raises:
    InputError: the file is missing or unreadable, or an array is missing or has another shape or dtype.
  """
  if not path:
    fix = 'give its path; a run on arrays in memory needs them again: jaxres.load(RUN).evaluate((images, labels))'
    raise InputError('data.path', "data.name='arrays' reads an .npz file", fix=fix)
  path = str(user_path(path, 'data.path'))
  if os.path.isdir(path):
    raise InputError('data.path', f'{path} is a folder', expected='an .npz file, or set data.name=folder')
  if not os.path.exists(path):
    raise InputError('data.path', f'no such file: {path}')
  try:
    content = load_npz(pathlib.Path(path))
  except ValueError as error:
    raise InputError(path, f'not a readable .npz file: {error}') from None
  return make_source(path, content, labels)


def make_source(path: str, content: dict[str, np.ndarray], labels: Labels, *, needs_test: bool = True) -> Source:
  """Return the data set of ``content``, the arrays of ``read_npz``; without a test split where ``needs_test`` is False.

  Args:
    path: what the arrays are from, for the errors.
    content: arrays by name.
    labels: what they are.
    needs_test: whether it is an error that there is no test split.

  Raises:
    InputError: an array is missing or has another shape or dtype.
  """
  train = _split(path, content, 'train', labels)
  test = _split(path, content, 'test', labels) if needs_test or 'test_x' in content or 'test_y' in content else None
  val = _split(path, content, 'val', labels) if 'val_x' in content or 'val_y' in content else None
  for split, other in (('test', test), ('val', val)):
    if other and train.images.shape[1:] != other.images.shape[1:]:
      shapes = f'{train.images.shape[1:]} and {other.images.shape[1:]}'
      raise InputError(path, f'train_x and {split}_x hold images of different shapes: {shapes}')
    if other and labels.rank == 1 and train.labels.shape[1:] != other.labels.shape[1:]:
      lengths = f'{train.labels.shape[1]} and {other.labels.shape[1]} numbers'
      raise InputError(path, f'train_y and {split}_y hold labels of different lengths: {lengths}')
  if content.get('class_names', np.empty(1)).ndim != 1:
    raise InputError(f'{path}: class_names', expected='a list of names', found=_kind(content['class_names']))
  names = content['class_names'] if 'class_names' in content else _list_classes(path, train, labels)
  if labels.are_classes and len(names) <= train.labels.max():
    problem = f'class_names has {len(names)} names, and a training example has label {train.labels.max()}'
    raise InputError(path, problem)
  unique = _unique(path, [_text(path, name) for name in names])
  say_lookalikes(path, unique)
  return Source(train, test, unique, val)


def _unique(path: str, names: list[str]) -> tuple[str, ...]:
  """Return the names of the classes, of which no two are one: their scores could not be told apart."""
  first: dict[str, int] = {}
  for number, name in enumerate(names):
    if not name:
      raise InputError(path, f'class_names: the name of class {number} is empty')
    if first.setdefault(name, number) != number:
      both = f'classes {first[name]} and {number} are both called {shorten(name)!r}'
      raise InputError(path, f'class_names: {both}', fix='give each its own name')
  return tuple(names)


def _text(path: str, name: object) -> str:
  """Return the name of a class, which may be bytes of UTF-8."""
  if not isinstance(name, bytes):
    return str(name)
  try:
    return name.decode('utf-8')
  except UnicodeDecodeError as error:
    raise InputError(path, f'class_names: {bytes(name)[:80]!r} is not UTF-8: {error.reason}') from None


def _list_classes(path: str, train: Arrays, labels: Labels) -> Sequence[object]:
  """Return what the classes, or the numbers of a label, are called where the file does not say."""
  if labels.are_classes:
    return _count_classes(path, train)
  if labels.rank == 0:
    return ['value']
  return range(train.labels.shape[-1]) if labels.rank == 1 else range(int(train.labels.max()) + 1)


def _count_classes(path: str, train: Arrays) -> range:
  numbers = np.unique(train.labels)
  gaps = np.flatnonzero(numbers != np.arange(len(numbers)))
  if len(gaps):
    problem = f'no training example has label {gaps[0]}, one has {numbers[gaps[0]]}'
    raise InputError(path, problem, expected='0, 1, ... with no gap, or an array class_names beside them')
  return range(len(numbers))


def _split(path: str, content: dict[str, np.ndarray], split: str, of: Labels) -> Arrays:
  for name in (f'{split}_x', f'{split}_y'):
    if name not in content:
      names = shorten(', '.join(content)) or 'nothing'
      raise InputError(path, f'no array {name}', expected='train_x, train_y, test_x, test_y', found=names)
  images, labels = content[f'{split}_x'], content[f'{split}_y']
  if images.ndim == 3:
    images = images[..., None]
  _check_images(path, f'{split}_x', images, len(labels) if labels.ndim else 0, _channels(path, content))
  converted = of.convert(labels, images.shape, f'{path}: {split}_y', _label_fix(labels, images) * of.are_classes)
  if not len(images):
    raise InputError(path, f'{split}_x is empty', expected='at least one image')
  if images.max() <= 1 < images[0].size:
    print_status(f'{path}: {split}_x has no value above 1: black images; levels are 0..255')
  return Arrays(images, converted)


def _channels(path: str, content: dict[str, np.ndarray]) -> int | None:
  """Return how many channels an image has, where the file says so."""
  given = content.get('channels')
  if given is None:
    return None
  if given.dtype.kind not in 'iu' or given.size != 1 or given.item() < 1:
    raise InputError(f'{path}: channels', expected='one whole number, 1 or more', found=_kind(given))
  return int(given.item())


def _check_images(path: str, name: str, images: np.ndarray, count: int, channels: int | None) -> None:
  """Raise InputError unless ``images`` are uint8 ``[N, H, W, C]``.

  Args:
    path: of the file, for the error.
    name: of the array.
    images: of any shape and dtype.
    count: how many labels go with them.
    channels: C, where the file says so.
  """
  shape = list(images.shape)
  if images.dtype != np.uint8 or images.ndim != 4 or 0 in shape[1:]:
    kind = f'{_kind(images)}{_image_fix(name, images)}'
    raise InputError(f'{path}: {name}', expected='uint8 [N, H, W, C] with values 0..255', found=kind)
  if shape[3] == count != shape[0] and shape[2] <= MAX_CHANNELS:
    fix = f'use {name}.transpose(3, 0, 1, 2)'
    raise InputError(f'{path}: {name}', expected='[N, H, W, C]', found=f'{shape}, which has the examples last', fix=fix)
  if problem := _axes_problem(name, shape, channels):
    raise InputError(f'{path}: {name}', expected='[N, H, W, C]', found=f'{shape}, {problem}')


def _kind(array: np.ndarray) -> str:
  """Return dtype and shape in a few words: a dtype can have a thousand fields."""
  return f'{shorten(str(array.dtype), 40)} {shorten(str(list(array.shape)), 80)}'


def _axes_problem(name: str, shape: list[int], channels: int | None) -> str:
  """Return why the last axis of images may not be that of the channels, and what to do; nothing where it is.

  It is where it has at most ``MAX_CHANNELS``, is the shortest, or leaves square images. ``[N, 13, 64, 64]`` would be
  images of 13x64 with 64 channels each, and is 64x64 with 13; of ``[N, 6, 7, 12]`` nobody can tell.
  """
  _, height, width, depth = shape
  first = f'use {name}.transpose(0, 2, 3, 1)'
  last = f'save channels={depth} beside it where they are last'
  if channels is not None:
    fix = first if channels == height else 'put them last, or mend the number'
    return '' if depth == channels else f'and channels is {channels}; {fix}'
  if depth <= MAX_CHANNELS or depth < min(height, width) or height == width != depth:
    return ''
  if width > MAX_CHANNELS and (height <= MAX_CHANNELS or width == depth != height):
    return f'which has the channels first; {first}, or {last}'
  return f'where they may be the first of {height}x{width}x{depth} or the last; {first}, or {last}'


def _image_fix(name: str, images: np.ndarray) -> str:
  """Return how images of another dtype become uint8, where their values say so."""
  if images.dtype.kind not in 'biuf' or images.ndim != 4 or not images.size or images.dtype == np.uint8:
    return ''
  low, high = float(images.min()), float(images.max())
  if not (low >= 0 and high <= 255):  # NaN too
    return f' from {low:g} to {high:g}; scale them to 0..255 and round'
  scaled = f'255 * {name}' if high <= 1 and images.dtype.kind in 'bf' else name
  return f' from {low:g} to {high:g}; use np.rint({scaled}).astype(np.uint8)'


def _label_fix(labels: np.ndarray, images: np.ndarray) -> str:
  """Return how labels of another shape or dtype become integers, where they say so."""
  if labels.ndim == 2 and len(labels) == len(images):
    return '; use .ravel()' if labels.shape[1] == 1 else '; of one number for each class use .argmax(1)'
  if labels.dtype.kind == 'f' and labels.shape == images.shape[:1] and (labels == np.rint(labels)).all():
    return '; use .astype(np.int32)'
  return ''
