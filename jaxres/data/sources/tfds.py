"""TFDS image-classification sets in array_record format, read with no TensorFlow and no network."""

import errno
import importlib.util
import io
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from jaxres.data.decode import eight_bits
from jaxres.data.sources import cifar, published, tfds_labels
from jaxres.data.splits import with_test
from jaxres.data.types import Arrays, Encoded, Source, Split
from jaxres.errors import InputError, nearest, print_status
from jaxres.paths import MAX_TEXT_BYTES, check_utf8, read_regular, shell_word, shorten, user_path

_NAMES = ('id', 'file_name', 'filename', 'image/file_name', 'image/filename')  # features that name an example
SPLITS = ('train', 'validation', 'test')
_VERSION = re.compile(r'\d+\.\d+\.\d+')
PREPARABLE = (*cifar.PUBLISHED, *published.PUBLISHED)  # by `jaxres prepare NAME`
_FORMAT = 'array_record'
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # Pillow's name of each number of channels


def read(name: str, data_dir: str | None = None, seed: int = 0, tested: str = 'split') -> Source:
  """Read a prepared data set: images of one size into memory, others when they are needed.

  Args:
    name: TFDS's name of the set, such as 'cifar10'; 'name/config' where it has configs. It must
      have the features ``image`` (uint8) and ``label`` (ClassLabel).
    data_dir: where sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    seed: of the examples that are held out where train is the only split with labels.
    tested: of ``with_test``.

  Returns:
    The splits and the class names (digits where the set has none). Where the feature states the
    images' size a split is images uint8 [N, H, W, C] and labels int32 [N], else it is encoded. TFDS's
    split validation is val; it is test where the set has none, or one without labels, as ImageNet.
    Examples are in the order of their ``id`` where they have one, so that the order does not depend
    on how the set was shuffled and sharded.

  Raises:
    InputError: the set is not there, is in another format, is damaged or has other features.
  """
  folder = _find(name, data_dir)
  if not has_array_record():
    raise InputError(
      name,
      f'reading {folder} needs the package array_record, which has wheels for Linux only',
      fix=without_array_record(name),
    )
  import tensorflow_datasets as tfds  # slow; never imports TensorFlow here

  try:
    builder = tfds.builder_from_directory(folder)
    features = builder.info.features
    _check_features(folder, features, builder.info.splits)
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    decoders = dict.fromkeys(images, tfds.decode.SkipDecoding())
    # array_record checks a hash of every block: a damaged or missing file ends here.
    sources = {
      split: builder.as_data_source(split=split, decoders=decoders)
      for split in SPLITS
      if split in builder.info.splits and builder.info.splits[split].num_examples
    }
    splits = {split: _split(folder, split, source, features) for split, source in sources.items()}
  except InputError:
    raise
  except Exception as error:  # TFDS and array_record raise nearly every type there is
    reason = shorten(' '.join(str(error).split()))
    raise InputError(
      folder, f'cannot be read: {reason}', fix=f'remove that folder and {prepare_again(name, data_dir)}'
    ) from error
  return with_test(_name_splits(folder, splits), tuple(features['label'].names), str(folder), seed, tested)


def is_prepared(name: str, data_dir: str | None = None) -> bool:
  """Return whether ``read`` would find the set ``name`` in array_record format."""
  return _FORMAT in _versions(root(data_dir) / name).values()


def root(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Return the directory that data sets are kept in: TFDS's own rule."""
  chosen = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return check_utf8(user_path(chosen, 'data.data_dir'), 'data.data_dir')


def list_known(data_dir: str | os.PathLike[str] | None = None) -> set[str]:
  """Return the names of the sets that are there, in any format, and of those that jaxres can prepare."""
  parent = root(data_dir)
  infos = [info for depth in ('*/*', '*/*/*') for info in parent.glob(f'{depth}/dataset_info.json')]
  there = {info.parent.parent for info in infos if _VERSION.fullmatch(info.parent.name)}
  return {folder.relative_to(parent).as_posix() for folder in there} | set(PREPARABLE)


def check_access(name: str, data_dir: str | os.PathLike[str] | None = None) -> None:
  """Raise InputError where a part of the set ``name`` may not be read, which would else seem not to be there."""
  folder = root(data_dir) / name
  for place in (folder, *(folder / entry for entry in _entries(folder) if _VERSION.fullmatch(entry))):
    for path in (place, *(place / entry for entry in _entries(place))):
      if os.path.exists(path) and not os.access(path, os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK):
        raise InputError(path, f'cannot be read: {os.strerror(errno.EACCES)}')


def _entries(folder: pathlib.Path) -> list[str]:
  """Return the names in ``folder``; none where it is none, or may not be read."""
  try:
    return sorted(os.listdir(folder))
  except (OSError, ValueError):
    return []


def sizes_vary(folder: pathlib.Path) -> bool:
  """Return whether the set in ``folder`` leaves the size of its images open."""
  import tensorflow_datasets as tfds  # slow; never imports TensorFlow here

  features = tfds.builder_from_directory(folder).info.features
  return 'image' in features and None in features['image'].shape


def has_array_record() -> bool:
  """Return whether the package array_record, which has wheels for Linux only, is installed."""
  return importlib.util.find_spec('array_record') is not None


def without_array_record(name: str) -> str:
  """Return what to do with the set ``name`` where array_record cannot be installed."""
  if name not in cifar.PUBLISHED:
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
  fix = prepare_again(name, data_dir)
  if versions:
    folder, form = list(versions.items())[-1]
    if form == 'tfrecord':
      convert = f'`jaxres prepare tfrecord {shell_word(str(folder))} --data_dir ELSEWHERE`'
      raise InputError(folder, 'it is in tfrecord format', fix=f'run {convert} and set data.data_dir=ELSEWHERE')
    raise InputError(
      folder,
      f'it is in {form} format, which only TensorFlow reads',
      expected=_FORMAT,
      fix=f'move it away or choose another data.data_dir, and {fix}',
    )
  if name not in PREPARABLE:
    raise InputError(parent, f'no data set {name!r}', fix=f'{nearest(name, list_known(data_dir))}; else {fix}')
  problem = 'that directory does not exist' if not parent.is_dir() else f'no {parent / name}/*.*.*'
  raise InputError(name, f'not in {parent} ({problem})', fix=f'{fix} or set data.download=True')


def _versions(folder: pathlib.Path) -> dict[pathlib.Path, str]:
  """Return each complete version's folder and file format, oldest first."""
  infos = [i for i in folder.glob('*/dataset_info.json') if _VERSION.fullmatch(i.parent.name)]
  infos.sort(key=lambda info: [int(number) for number in info.parent.name.split('.')])
  return {info.parent: file_format(info) for info in infos}


def file_format(info: pathlib.Path) -> str:
  """Return the file format that a dataset_info.json states."""
  try:
    return str(json.loads(read_regular(info, MAX_TEXT_BYTES)).get('fileFormat', 'tfrecord'))
  except (OSError, ValueError, AttributeError) as error:
    raise InputError(info, f'cannot be read: {error}', fix=f'remove {info.parent} and prepare it again') from error


def prepare_again(name: str, data_dir: str | None) -> str:
  """Return the command that prepares ``name``, as the end of a sentence."""
  if name in PREPARABLE:
    place = f' --data_dir {shell_word(str(data_dir))}' if data_dir else ''
    return f'run `jaxres prepare {name}{place}`'
  return f"prepare it with tfds.builder({name!r:.100}).download_and_prepare(file_format='{_FORMAT}')"


def _check_features(folder: pathlib.Path, features: Any, splits: Any) -> None:
  """Raise an InputError unless ``read`` can read the set."""
  kinds = {key: type(feature).__name__ for key, feature in features.items()}
  if (kinds.get('image'), kinds.get('label')) != ('Image', 'ClassLabel'):
    features_there = shorten(', '.join(f'{name}: {kind}' for name, kind in kinds.items()))
    expected = 'the features image: Image and label: ClassLabel'
    raise InputError(folder, 'it is no image-classification set', expected=expected, found=features_there)
  if 'train' not in splits:
    raise InputError(folder, "it has no split 'train'", fix=f'its splits: {shorten(", ".join(splits))}')
  empty = [split for split in SPLITS if split in splits and not splits[split].num_examples]
  if empty:
    raise InputError(folder, f'{empty[0]}: the split is empty')
  if features['image'].np_dtype != np.uint8 or features['image'].shape[-1] not in _MODES:
    raise InputError(folder, expected='uint8 images of 1, 3 or 4 channels', found=features['image'])


def _split(folder: pathlib.Path, split: str, source: Any, features: Any) -> Split:
  """Return the examples of a TFDS data source, decoded if the set states their size; labels may be -1."""
  *size, channels = features['image'].shape
  if None not in size:
    examples = source.__getitems__(range(len(source)))
    return _arrays(examples, f'{folder} {split}', channels, features['label'].num_classes)
  labels, order = tfds_labels.read(folder, split, source)
  return Encoded(labels[order], order, lambda at: _place(folder, split, source, at), lambda at: _image(source, at))


def _image(source: Any, at: int) -> bytes:
  """Return an encoded image."""
  try:
    example = source[at]
    tfds_labels.check_complete([example])
  except OSError:
    raise
  except Exception as error:  # array_record raises nearly every type there is
    raise OSError(' '.join(str(error).split())) from error
  return bytes(example['image'])


def _place(folder: pathlib.Path, split: str, source: Any, at: int) -> str:
  """Return what messages call the example of a record."""
  try:
    return f'{folder} {split}, example {_example_name(source[at], at)}'
  except Exception:  # the record is damaged, which may be what the message is about
    return f'{folder} {split}, record {at}'


def _name_splits(folder: pathlib.Path, splits: Mapping[str, Split]) -> dict[str, Split]:
  """Return the splits by the names that they have here, less a test split without labels."""
  named = {{'validation': 'val'}.get(split, split): data for split, data in splits.items()}
  if 'test' in named and (named['test'].labels == -1).all():
    del named['test']
    if 'val' not in named:
      print_status(f'{folder}: its test split has no labels and is left out')
  if 'val' in named and 'test' not in named:
    print_status(f"{folder}: its split 'validation' is evaluated as test: no other has labels")
    named['test'] = named.pop('val')
  return named


def _arrays(examples: list[dict[str, Any]], where: str, channels: int, num_classes: int) -> Arrays:
  """Decode one split's examples, in the order of their ids; labels may all be -1."""
  tfds_labels.check_complete(examples)
  examples = [examples[at] for at in tfds_labels.by_id([example.get('id') for example in examples])]
  labels = np.array([example['label'] for example in examples], np.int32)
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if wrong.size and not (labels == -1).all():
    at = int(wrong[0])
    example = f'{where}, example {_example_name(examples[at], at)}: label'
    raise InputError(example, expected=f'0 to {num_classes - 1}', found=labels[at])
  return Arrays(_decode(examples, where, channels), labels)


def _decode(examples: list[dict[str, Any]], where: str, channels: int) -> np.ndarray:
  """Return the images as uint8 [N, H, W, channels].

  One thread: Pillow holds the interpreter lock for most of so small an image, and two threads took
  4.7 to 6.0 s for CIFAR-10's 50,000 where one takes 3.4 s.
  """
  images = np.empty(0, np.uint8)
  for at, example in enumerate(examples):
    try:
      image: Image.Image = eight_bits(Image.open(io.BytesIO(example['image'])))
      if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
      pixels = np.asarray(image).reshape(image.height, image.width, channels)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others
      reason = str(error).split(' <_io')[0]  # less the address of a buffer
      problem = f'cannot decode its image: {reason}'
      raise InputError(f'{where}, example {_example_name(example, at)}', problem) from error
    if at == 0:
      images = np.empty((len(examples), *pixels.shape), np.uint8)
    if pixels.shape != images.shape[1:]:
      raise InputError(
        f'{where}, example {_example_name(example, at)}',
        expected=f'an image of {images.shape[1:]} as the first',
        found=f'{pixels.shape}',
        fix='only images of one size fit in one array',
      )
    images[at] = pixels
  return images


def _example_name(example: dict[str, Any], at: int) -> str:
  """Return the example's id or file name, or its position where the set has neither."""
  name = next((example[key] for key in _NAMES if key in example), at)
  return name.decode('utf-8', 'replace') if isinstance(name, bytes) else str(name)
