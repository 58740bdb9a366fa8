"""The data: ``load`` a data set by name, split and ready for a jitted step."""

import numbers
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxres.data import arrays, order, prepare, tfds
from jaxres.data.arrays import Arrays, Source
from jaxres.data.resident import Batch, Resident
from jaxres.errors import InputError, nearest

__all__ = ['Batch', 'Dataset', 'Info', 'Pipeline', 'load']

Pipeline = Resident

# The published channel means and standard deviations of the training splits, on the scale 0..1.
STATISTICS = {
  'cifar10': ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  'cifar100': ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class Info(NamedTuple):
  """What a model must know of a data set."""

  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]  # height, width, channels
  mean: tuple[float, ...]  # of each channel, on the scale 0..1
  std: tuple[float, ...]


class Dataset(NamedTuple):
  """The splits as pipelines. ``val`` is None where ``data.val`` is 0."""

  train: Pipeline
  val: Pipeline | None
  test: Pipeline
  info: Info

  def place(self, sharding: jax.sharding.Sharding) -> None:
    """Move what the splits keep on the devices there."""
    for pipeline in (self.train, self.val, self.test):
      if pipeline is not None:
        pipeline.place(sharding)


def load(
  name: str = 'cifar10',
  *,
  data_dir: str | None = None,
  path: str | None = None,
  download: bool = False,
  pipeline: Literal['resident'] = 'resident',
  batch_size: int = 128,
  val: float = 0.0,
  limit: int | None = None,
  classes: tuple[int | str, ...] | None = None,
  seed: int = 0,
) -> Dataset:
  """Return the data set called ``name``.

  Args:
    name: ``'cifar10'`` or ``'cifar100'`` (TFDS, array_record), ``'digits'`` (scikit-learn's, needs no download), or
      ``'arrays'`` (an ``.npz`` file).
    data_dir: where TFDS data sets are; ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets`` where it is not given.
    path: the file of ``'arrays'``: uint8 ``train_x``, ``test_x`` ``[N, H, W, C]`` and int ``train_y``, ``test_y``.
    download: fetch and prepare a data set that ``data_dir`` lacks, as ``jaxres prepare`` does.
    pipeline: ``'resident'`` keeps the data set on the device.
    batch_size: examples a step, over all devices.
    val: the fraction of the training examples held out for validation, stratified by class.
    limit: train on no more than this many examples, stratified by class; drawn after ``val`` was held out.
    classes: keep these classes alone, by name or number; they are numbered anew in the order given.
    seed: of the validation split, of ``limit`` and of the sample order.

  Raises:
    InputError: a field is out of range, the data set is unknown, missing or empty, or a label is out of range.
  """
  _check_fields(batch_size, val, limit)
  source = _check_labels(name, _read(name, data_dir, path, download))
  if classes is not None:
    source = _check_labels(name, keep_classes(source, classes))
  train, held_out = split(source.train, val, seed)
  if limit is not None and limit < len(train.labels):
    train = train.take(order.stratified(train.labels, limit, seed))
  mean, std = STATISTICS.get(name) or channel_statistics(train.images)
  info = Info(source.class_names, train.images.shape[1:], mean, std)
  pipe = lambda data: Resident(data, batch_size=batch_size, seed=seed)
  return Dataset(pipe(train), pipe(held_out) if held_out else None, pipe(source.test), info)


def keep_classes(source: Source, classes: Sequence[int | str]) -> Source:
  """Return ``source`` with ``classes`` alone, given by name or number and numbered anew in the order given.

  Raises:
    InputError: a class is unknown or named twice, or fewer than two are kept.
  """
  names = source.class_names
  if len(classes) == 1 and isinstance(classes[0], str):  # 'cat,dog' on the command line arrives as one word
    classes = [word.strip() for word in classes[0].split(',')]
  kept = [_class_number(c, names) for c in classes]
  if len(set(kept)) != len(kept) or len(kept) < 2:
    raise InputError(f'data.classes: expected at least two different classes, found {tuple(classes)}')
  new_label = np.full(len(names), -1, np.int32)
  new_label[kept] = np.arange(len(kept))

  def keep(data: Arrays) -> Arrays:
    labels = new_label[data.labels]
    return Arrays(data.images[labels >= 0], labels[labels >= 0])

  return Source(keep(source.train), keep(source.test), tuple(names[k] for k in kept))


def split(data: Arrays, val: float, seed: int) -> tuple[Arrays, Arrays | None]:
  """Return the training and the validation part of ``data``: a stratified fraction ``val``, None where that is 0.

  Raises:
    InputError: one of the two parts would be empty.
  """
  if not val:
    return data, None
  size = round(val * len(data.labels))
  if not 0 < size < len(data.labels):
    raise InputError(f'data.val: {val} of {len(data.labels)} training examples leaves a split empty')
  held_out = np.zeros(len(data.labels), bool)
  held_out[order.stratified(data.labels, size, seed)] = True
  return data.take(~held_out), data.take(held_out)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Return mean and standard deviation of each channel of uint8 ``[N, H, W, C]``, on the scale 0..1.

  A channel that never changes gets a standard deviation of 1.
  """
  levels = np.arange(256) / 255
  counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
  share = counts / counts.sum(axis=1, keepdims=True)
  mean = share @ levels
  std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
  return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _read(name: str, data_dir: str | None, path: str | None, download: bool) -> Source:
  readers: dict[str, Callable[[], Source]] = {
    'cifar10': lambda: _read_tfds(name, data_dir, download),
    'cifar100': lambda: _read_tfds(name, data_dir, download),
    'digits': arrays.read_digits,
    'arrays': lambda: arrays.read_npz(path),
  }
  if name not in readers:
    raise InputError(f'data.name: unknown data set {name!r}{nearest(name, readers)}')
  return readers[name]()


def _read_tfds(name: str, data_dir: str | None, download: bool) -> Source:
  if download and not tfds.is_prepared(name, data_dir):
    prepare.prepare(name, data_dir)
  return tfds.read(name, data_dir)


def _check_fields(batch_size: int, val: float, limit: int | None) -> None:
  if batch_size < 1:
    raise InputError(f'data.batch_size: expected 1 or more, found {batch_size}')
  if not 0.0 <= val < 1.0:
    raise InputError(f'data.val: expected a fraction in [0, 1), found {val}')
  if limit is not None and limit < 1:
    raise InputError(f'data.limit: expected 1 or more, found {limit}')


def _check_labels(name: str, source: Source) -> Source:
  """Return ``source`` if every label is in range: a wrong one would train the wrong class in silence."""
  classes = len(source.class_names)
  for part, data in (('train', source.train), ('test', source.test)):
    if not len(data.labels):
      raise InputError(f'data.name: {name}: the {part} split is empty')
    wrong = np.flatnonzero((data.labels < 0) | (data.labels >= classes))
    if len(wrong):
      first = wrong[0]
      where = f'data.name: {name}: {part} example {first} has label {data.labels[first]}'
      raise InputError(f'{where}; expected 0 to {classes - 1} ({classes} classes)')
  return source


def _class_number(given: int | str, names: Sequence[str]) -> int:
  if isinstance(given, str) and given in names:
    return names.index(given)
  number = int(given) if str(given).isdecimal() else -1
  if isinstance(given, numbers.Integral | str) and 0 <= number < len(names):
    return number
  raise InputError(f'data.classes: unknown class {given!r}{nearest(given, names)}')
