"""TFDS image-classification sets in array_record format, read with no TensorFlow and no network."""

import importlib.util
import io
import json
import os
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxres.data.arrays import Arrays, Source
from jaxres.errors import InputError, nearest

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_FORMAT = 'array_record'
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # Pillow's name of each number of channels


def read(name: str, data_dir: str | None = None) -> Source:
  """Read the train and test splits of a prepared data set into memory.

  Args:
    name: TFDS's name of the set, such as 'cifar10'; 'name/config' where it has configs. It must
      have the features ``image`` (uint8, all of one size) and ``label`` (ClassLabel).
    data_dir: where sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.

  Returns:
    images uint8 [N, H, W, C], labels int32 [N] and the class names (digits where the set has none).
    Examples are in the order of their ``id`` where they have one, so that the order does not depend
    on how the set was shuffled and sharded.

  Raises:
    InputError: the set is not there, is in another format, is damaged or has other features.
  """
  folder = _find(name, data_dir)
  if not has_array_record():
    raise InputError(
      f'{name}: reading {folder} needs the package array_record, which has wheels for Linux only; '
      + without_array_record(name)
    )
  import tensorflow_datasets as tfds  # slow; never imports TensorFlow here

  try:
    builder = tfds.builder_from_directory(folder)
    features = builder.info.features
    channels = _check_features(folder, features, builder.info.splits)
    decoders = {'image': tfds.decode.SkipDecoding()}
    # array_record checks a hash of every block: a damaged or missing file ends here.
    train, test = (_fetch(builder.as_data_source(split=split, decoders=decoders)) for split in ('train', 'test'))
  except InputError:
    raise
  except Exception as error:  # TFDS and array_record raise nearly every type there is
    reason = ' '.join(str(error).split())
    raise InputError(
      f'cannot read {folder}: {reason}; remove that folder and {_prepare_anew(name, data_dir)}'
    ) from error
  names = tuple(features['label'].names)
  return Source(
    _arrays(train, f'{folder} train', channels, len(names)),
    _arrays(test, f'{folder} test', channels, len(names)),
    names,
  )


def is_prepared(name: str, data_dir: str | None = None) -> bool:
  """Return whether ``read`` would find the set ``name`` in array_record format."""
  return _FORMAT in _versions(root(data_dir) / name).values()


def root(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Return the directory that data sets are kept in: TFDS's own rule."""
  chosen = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(chosen).expanduser()


def has_array_record() -> bool:
  """Return whether the package array_record, which has wheels for Linux only, is installed."""
  return importlib.util.find_spec('array_record') is not None


def without_array_record(name: str) -> str:
  """Return what to do with the set ``name`` where array_record cannot be installed."""
  if name not in _preparable():
    return f'on another machine save {name} as an .npz file, then set data.name=arrays data.path=FILE'
  file = f'{name}.npz'
  return f'run `jaxres prepare {name} --npz {file}`, then set data.name=arrays data.path={file}'


def _find(name: str, data_dir: str | None) -> pathlib.Path:
  """Return the folder of the newest version that is in array_record format."""
  parent = root(data_dir)
  versions = _versions(parent / name)
  readable = [folder for folder, form in versions.items() if form == _FORMAT]
  if readable:
    return readable[-1]
  fix = _prepare_anew(name, data_dir)
  if versions:
    folder, form = list(versions.items())[-1]
    raise InputError(
      f'{folder} is in {form} format, which only TensorFlow reads; expected {_FORMAT}: '
      f'move it away or choose another data.data_dir, and {fix}'
    )
  if name not in _preparable():
    raise InputError(f'no data set {name!r} in {parent}{nearest(name, _known(parent))}; else {fix}')
  found = 'that directory does not exist' if not parent.is_dir() else f'no {parent / name}/*.*.*'
  raise InputError(f'{name} is not in {parent} ({found}); {fix} or set data.download=True')


def _versions(folder: pathlib.Path) -> dict[pathlib.Path, str]:
  """Return each complete version's folder and file format, oldest first."""
  infos = [i for i in folder.glob('*/dataset_info.json') if _VERSION.fullmatch(i.parent.name)]
  infos.sort(key=lambda info: [int(number) for number in info.parent.name.split('.')])
  return {info.parent: _file_format(info) for info in infos}


def _file_format(info: pathlib.Path) -> str:
  """Return the file format that a dataset_info.json states."""
  try:
    return str(json.loads(info.read_text('utf-8')).get('fileFormat', 'tfrecord'))
  except (OSError, ValueError, AttributeError) as error:
    raise InputError(f'cannot read {info}: {error}; remove {info.parent} and prepare it anew') from error


def _preparable() -> Sequence[str]:
  from jaxres.data import prepare  # here, as prepare imports this module

  return tuple(prepare.PUBLISHED)


def _known(parent: pathlib.Path) -> set[str]:
  """Return the names of the sets in ``parent`` and of those that jaxres can prepare."""
  there = {info.parts[-3] for info in parent.glob('*/*/dataset_info.json')}
  return there | set(_preparable())


def _prepare_anew(name: str, data_dir: str | None) -> str:
  """Return the command that prepares ``name``, as the end of a sentence."""
  if name in _preparable():
    place = f' --data_dir {shlex.quote(str(data_dir))}' if data_dir else ''
    return f'run `jaxres prepare {name}{place}`'
  return f"prepare it with tfds.builder({name!r}).download_and_prepare(file_format='{_FORMAT}')"


def _check_features(folder: pathlib.Path, features: Any, splits: Any) -> int:
  """Return the images' number of channels, after checking that ``read`` can read the set."""
  kinds = {key: type(feature).__name__ for key, feature in features.items()}
  if (kinds.get('image'), kinds.get('label')) != ('Image', 'ClassLabel'):
    raise InputError(
      f'{folder} is no image-classification set: expected the features image: Image and '
      f'label: ClassLabel, found {", ".join(f"{k}: {v}" for k, v in kinds.items())}'
    )
  missing = {'train', 'test'} - set(splits)
  if missing:
    raise InputError(f'{folder} has no split {missing.pop()!r}; its splits: {", ".join(splits)}')
  channels = features['image'].shape[-1]
  if features['image'].np_dtype != np.uint8 or channels not in _MODES:
    raise InputError(f'{folder}: expected uint8 images of 1, 3 or 4 channels, found {features["image"]}')
  return int(channels)


def _fetch(source: Any) -> list[dict[str, Any]]:
  """Return the examples of a TFDS data source, their images still encoded."""
  examples: list[dict[str, Any]] = source.__getitems__(range(len(source)))
  # A file cut off between two blocks is read without an error, as empty records.
  empty = sum(None in example.values() for example in examples)
  if empty:
    raise OSError(f'{empty} of {len(examples)} examples are empty')
  return examples


def _arrays(examples: list[dict[str, Any]], where: str, channels: int, num_classes: int) -> Arrays:
  """Decode one split's examples, in the order of their ids."""
  if not examples:
    raise InputError(f'{where}: the split is empty')
  if 'id' in examples[0]:
    examples = sorted(examples, key=lambda example: example['id'])
  labels = np.array([example['label'] for example in examples], np.int32)
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if wrong.size:
    at = int(wrong[0])
    found = f'label {labels[at]}, expected 0 to {num_classes - 1}'
    raise InputError(f'{where}, example {_example_name(examples[at], at)}: {found}')
  return Arrays(_decode(examples, where, channels), labels)


def _decode(examples: list[dict[str, Any]], where: str, channels: int) -> np.ndarray:
  """Return the images as uint8 [N, H, W, channels].

  One thread: Pillow holds the interpreter lock for most of so small an image, and two threads took
  4.7 to 6.0 s for CIFAR-10's 50,000 where one takes 3.4 s.
  """
  images = np.empty(0, np.uint8)
  for at, example in enumerate(examples):
    try:
      image: Image.Image = Image.open(io.BytesIO(example['image']))
      if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
      pixels = np.asarray(image).reshape(image.height, image.width, channels)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
      reason = str(error).split(' <_io')[0]  # less the address of a buffer
      found = f'cannot decode its image: {reason}'
      raise InputError(f'{where}, example {_example_name(example, at)}: {found}') from error
    if at == 0:
      images = np.empty((len(examples), *pixels.shape), np.uint8)
    if pixels.shape != images.shape[1:]:
      raise InputError(
        f'{where}, example {_example_name(example, at)}: expected an image of {images.shape[1:]} '
        f'as the first, found {pixels.shape}: only images of one size can be held in one array'
      )
    images[at] = pixels
  return images


def _example_name(example: dict[str, Any], at: int) -> str:
  """Return the example's id, or its position where the set has no ids."""
  found = example.get('id', at)
  return found.decode('utf-8', 'replace') if isinstance(found, bytes) else str(found)
