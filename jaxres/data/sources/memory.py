"""Data that Python hands over: arrays, pairs of images and labels, and whatever gives examples or batches each time."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxres.data.pixels import as_array, is_channels_first, to_uint8
from jaxres.data.sources import arrays
from jaxres.data.splits import with_test
from jaxres.data.types import CLASSES, Labels, Source
from jaxres.errors import InputError, nearest

SPLITS = ('train', 'val', 'test')
_IMAGES, _LABELS = ('image', 'images'), ('label', 'labels')  # the keys of an example or a batch that is a dict
_ARRAYS = tuple(f'{split}_{kind}' for split in SPLITS for kind in 'xy')
EXPECTED = (
  'a dict of arrays train_x, train_y, test_x, test_y, a dict of train, val and test, a pair (images, labels), or an '
  'iterable of such pairs'
)


def read(given: Any, labels: Labels = CLASSES, seed: int = 0, tested: str = 'split') -> Source:
  """Return the data set that ``given`` is, read into memory.

  Args:
    given: a dict of arrays as an ``.npz`` file of ``arrays.read_npz`` has them, where ``test_x`` and ``test_y`` may be
      missing; or a dict of ``'train'`` and perhaps ``'val'``, ``'test'`` and ``'class_names'``, each split as of
      ``read_split``; or a split, which is train.
    labels: what they are.
    seed: of the stratified fifth of the training examples that is held out where there is no test split.
    tested: of ``with_test``.

  Raises:
    InputError: it is something else, or can be read only once; or images or labels are of another shape or dtype.
  """
  content = _to_content(given, labels)
  train, test, names, val = arrays.make_source('data', content, labels, needs_test=False)
  splits = {'train': train} | ({'val': val} if val else {}) | ({'test': test} if test else {})
  if test is None and tested == 'split' and not labels.are_classes:
    problem = f'no test split, and {labels.kind} are not held out'
    raise InputError('data', problem, fix="give test, or data.test='none'")
  return with_test(splits, names, 'data', seed, tested)


def _to_content(given: Any, labels: Labels) -> dict[str, np.ndarray]:
  """Return ``given`` as the arrays of an ``.npz`` file."""
  if not isinstance(given, Mapping) or {*given} & {*_IMAGES}:
    given = {'train': given}
  known = (*SPLITS, *_ARRAYS, 'class_names')
  for key in given:
    if key not in known:
      raise InputError('data', f'unknown key {key!r}', fix=nearest(key, known))
  content = {'class_names': np.asarray(given['class_names'])} if 'class_names' in given else {}
  for split in SPLITS:
    pair = f'{split}_x', f'{split}_y'
    if split in given:
      content |= zip(pair, read_split(given[split], f'data[{split!r}]', labels), strict=True)
    elif given.keys() & {*pair}:
      missing = next((key for key in pair if key not in given), None)
      if missing:
        raise InputError('data', f'no {missing}', fix=f'give {pair[0]} and {pair[1]}')
      content |= {pair[0]: to_pixels(given[pair[0]], pair[0]), pair[1]: as_array(given[pair[1]], pair[1])}
  if 'train_x' not in content:
    raise InputError('data', expected=EXPECTED, found=f'a dict of {", ".join(map(repr, given)) or "nothing"}')
  return content


def read_split(given: Any, name: str, labels: Labels = CLASSES) -> tuple[np.ndarray, np.ndarray]:
  """Return the images, uint8 ``[N, H, W, C]``, and the labels of a split, ``[N, ...]``, read once.

  Args:
    given: ``(images, labels)``; or what gives, each time it is iterated over, examples or batches ``(image, label)``,
      or dicts of ``image`` and ``label``: a list, a torch ``DataLoader``, a ``tf.data.Dataset``. Images are uint8 or
      floats from 0 to 1; tensors of torch may have the channels first.
    name: of the argument, for the error.
    labels: what they are: with one axis more than that of an example they are a batch's.

  Raises:
    InputError: it is something else, or can be read only once.
  """
  if isinstance(given, Mapping):
    given = [given]
  if _is_pair(given):
    return to_pixels(given[0], f'{name}: images'), as_array(given[1], f'{name}: labels')
  images: list[np.ndarray] = []
  targets: list[np.ndarray] = []
  for number, element in enumerate(_iterate(given, name)):
    where = f'{name}, element {number}'
    image, target = _parse(element, where)
    label = as_array(target, f'{where}: label')
    is_batch = label.ndim == labels.rank + 1
    pixels = to_pixels(image if is_batch else _add_axis(image, where), f'{where}: image')
    if images and pixels.shape[1:] != images[0].shape[1:]:
      shapes = f'{list(pixels.shape[1:])}, and the first {list(images[0].shape[1:])}'
      raise InputError(where, f'the image is {shapes}', fix='make all of one size')
    images.append(pixels)
    targets.append(label if is_batch else label[None])
  if not images:
    raise InputError(name, 'no examples there')
  return np.concatenate(images), np.concatenate(targets)


def to_pixels(value: Any, name: str) -> np.ndarray:
  """Return images, uint8 ``[N, H, W, C]`` or ``[N, H, W]``, of an array or tensor of any library. Raises InputError."""
  array = as_array(value, name)
  return to_uint8(np.moveaxis(array, 1, -1) if is_channels_first(value, 1) else array, name)


def _add_axis(image: Any, where: str) -> Any:
  """Return one image as a batch of it; a tensor stays one, as it says more than its array."""
  return image[None] if hasattr(image, 'shape') else as_array(image, f'{where}: image')[None]


def _is_pair(given: Any) -> bool:
  """Return whether ``given`` is images and labels, not two examples."""
  is_example = lambda part: isinstance(part, tuple | Mapping)
  return isinstance(given, tuple | list) and len(given) == 2 and not any(map(is_example, given))


def _iterate(given: Any, name: str) -> Iterator[Any]:
  """Return an iterator over the elements of ``given``.

  Raises:
    InputError: it has none, has no end, or is an iterator itself: what was read of it is gone.
  """
  if isinstance(given, Iterator):
    fix = 'give what makes it, such as a list, a DataLoader or a tf.data.Dataset'
    problem = f'a {type(given).__name__} can be read only once, and a run that goes on reads it again'
    raise InputError(name, problem, fix=fix)
  if isinstance(given, str | bytes | os.PathLike):
    raise InputError(name, expected=EXPECTED, found=repr(given)[:80], fix='the section data of the config names files')
  if hasattr(given, 'cardinality') and int(given.cardinality()) == -1:
    raise InputError(name, 'it has no end', fix='leave out .repeat()')
  if hasattr(given, 'as_numpy_iterator'):
    elements: Iterator[Any] = given.as_numpy_iterator()
    return elements
  is_scalar = isinstance(given, np.generic | np.ndarray) and given.ndim == 0
  if is_scalar or not (isinstance(given, Iterable) or hasattr(given, '__getitem__')):
    raise InputError(name, expected=EXPECTED, found=f'a {type(given).__name__}')
  return iter(given)


def _parse(element: Any, where: str) -> tuple[Any, Any]:
  """Return image and label of an example, or those of a batch."""
  if isinstance(element, Mapping):
    image, label = (next((key for key in keys if key in element), None) for keys in (_IMAGES, _LABELS))
    if image and label:
      return element[image], element[label]
    raise InputError(where, expected='a dict with image and label', found=f'one with {", ".join(map(str, element))}')
  if isinstance(element, tuple | list) and len(element) == 2:
    return element[0], element[1]
  count = f' of {len(element)}' if isinstance(element, tuple | list) else ''
  raise InputError(where, expected='(image, label)', found=f'a {type(element).__name__}{count}')
