"""The data: ``load`` a data set by name, split and ready for a jitted step."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxres import config as config_lib
from jaxres.data import decode
from jaxres.data.fingerprints import fingerprint
from jaxres.data.images import Images, decode_all, drop_bad
from jaxres.data.prepare import published
from jaxres.data.resident import Batch, Resident
from jaxres.data.sources import arrays, csv_file, folder, memory, tfds
from jaxres.data.splits import check_labels, check_source, draw, hold_out, keep_classes, report_untrained
from jaxres.data.statistics import IMAGENET, STATISTICS, channel_statistics
from jaxres.data.stream import Examples, Stream
from jaxres.data.types import CLASSES, Arrays, Labels, Source, Split
from jaxres.errors import InputError, check_range, check_word, nearest

__all__ = ['Batch', 'Dataset', 'Info', 'Pipeline', 'first_batch', 'load', 'loader']
Pipeline = Resident | Stream
LoadedSplit = Arrays | Images  # a split read, or ready to be
SPLIT_RULE = 2  # by which data is split now
SPLIT_RULES = (1, SPLIT_RULE)
PIPELINES = ('resident', 'stream')
TESTED = ('split', 'val', 'none')
FILES = ('folder', 'csv')  # whose examples are files
ANY_LABELS = ('arrays',)  # what can have labels that are not of classes
PATHS = ('folder', 'csv', 'arrays')  # what reads data.path


class Info(NamedTuple):
  """What a model must know of a data set."""

  class_names: tuple[str, ...]  # or those of the numbers in a label
  image_shape: tuple[int, int, int]  # height, width, channels
  mean: tuple[float, ...]  # of each channel, on the scale 0..1
  std: tuple[float, ...]
  splits: Mapping[str, str] = {}  # the fingerprint of each
  split_rule: int = SPLIT_RULE  # of ``loader``


class Dataset(NamedTuple):
  """The splits as pipelines. ``val`` is None where ``data.val`` is 0, ``test`` where ``data.test`` is 'none'."""

  train: Pipeline
  val: Pipeline | None
  test: Pipeline | None
  info: Info

  @property
  def evaluated(self) -> Pipeline:
    """Return a split that is evaluated, for the shape of its images: test, or else val; training where neither is."""
    return self.test or self.val or self.train

  def place(self, mesh: Mesh) -> None:
    """Place every split on the devices of ``mesh``."""
    for pipeline in (self.train, self.val, self.test):
      if pipeline is not None:
        pipeline.place(mesh)


def load(
  name: str = 'cifar10',
  *,
  data_dir: str | None = None,
  path: str | None = None,
  download: bool = False,
  pipeline: Literal['resident', 'stream'] = 'resident',
  batch_size: int = 128,
  val: float = 0.0,
  test: Literal['split', 'val', 'none'] = 'split',
  fold: tuple[int, ...] = (),
  limit: int | None = None,
  classes: tuple[int | str, ...] | None = None,
  image_size: int | None = None,
  eval_image_size: int | None = None,
  center_crop: float = 1.0,
  crop_scale: tuple[float, ...] = (0.08, 1.0),
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
  workers: int = 2,
  max_bad: int = 0,
  seed: int = 0,
  split_rule: Any = 2,  # SPLIT_RULE, as config.py reads it from the text
  labels: Any = None,
  examples: Any = None,
) -> Dataset:
  """Return the data set called ``name``.

  Args:
    name: ``'digits'`` (scikit-learn's, needs no download), ``'arrays'`` (an ``.npz`` file), ``'folder'`` (image files,
      a sub-folder per class), ``'csv'`` (a list of them), or what TFDS calls an image-classification set that is there
      in array_record format: ``'cifar10'``, or ``'imagenette/320px-v2'`` where it has configs. See ``tfds.read``.
    data_dir: where TFDS data sets are; ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets`` where it is not given.
    path: the file of ``'arrays'``: uint8 ``train_x``, ``test_x`` ``[N, H, W, C]`` and ``train_y``, ``test_y``, int
      ``[N]`` or what the task asks for;
      the folder of ``'folder'``, see ``folder.read_folder``; the file of ``'csv'``, see ``folder.read_csv``.
    download: fetch and prepare a data set that ``data_dir`` lacks, as ``jaxres prepare`` does.
    pipeline: ``'resident'`` keeps the data set on the device; ``'stream'`` reads each batch ahead of its step.
    batch_size: examples a step, over all devices.
    val: the fraction of the training examples held out for validation, stratified by class.
    test: what is tested where the data has no test split: ``'split'`` holds out a stratified fifth of the training
      examples, ``'val'`` tests on its val split, by which no weights are chosen then; ``'none'`` tests nothing.
    fold: ``(k, n)`` holds out for validation part k, counted from 0, of n equal stratified ones, in place of ``val``:
      `jaxres crossval` trains once for each k. () does not.
    limit: train on no more than this many examples, stratified by class; drawn after ``val`` was held out.
    classes: keep these classes alone, by name or number; they are numbered again in the order given.
    image_size: pixels a side that images are resized and center-cropped to; None keeps their size, which must then be
      one for all, and which ``'stream'`` does not know of encoded images.
    eval_image_size: the same for validation and test images; None takes ``image_size``.
    center_crop: the share of the resized short side that the center crop keeps; 0.875 is ImageNet's 224 of 256.
    crop_scale: the least and the largest share of an image's area in the random crop that ``'stream'`` trains on;
      ``()`` trains on the center crop, as ``'resident'`` does.
    mean: of each channel, on the scale 0..1, that images are normalized with: those that pretrained weights were
      trained with. None takes the published one of CIFAR, ImageNet's of encoded images, or that of the training images.
    std: the same, of the standard deviation.
    workers: threads that read images.
    max_bad: go on with as many encoded images in each split that cannot be decoded: of training each is replaced by
      the next that can, of evaluation they are left out, which is checked before the training starts.
    seed: of the validation split, of a test split that is held out, of ``limit``, of the sample order and of the crops.
    split_rule: by which the run that goes on splits; it is no field of the config. 2: files are drawn by their names.
      1, of runs that do not say theirs: by their place in the list, and a folder's classes are by the alphabet even
      where all are numbers. Arrays and TFDS sets are drawn by their place in either.
    labels: what labels are, ``Task.labels``; it is no field of the config. None are class numbers.
    examples: the data itself, as of ``memory.read``, where ``name`` is ``'arrays'``; it is no field of the config.

  Raises:
    InputError: a field is out of range, the data set is unknown, missing or empty, or a label is out of range.
  """
  check(**locals())
  labels = labels or CLASSES
  check_source(name, labels, ANY_LABELS, classes)
  if examples is None:
    where, source = name, read_source(name, data_dir, path, download, seed, split_rule, labels, test)
  else:
    where, source = 'data', memory.read(examples, labels, seed, test)
  source, train, held_out = _choose_examples(where, source, labels, classes, val, fold, limit, seed)

  files: dict[str, Callable[[int], str]] = {}  # by split

  def load_split(data: Split, size: int | None, part: str = 'train') -> LoadedSplit:
    if isinstance(data, Arrays):
      return data if size is None else resize(data, size, center_crop, labels)
    if pipeline == 'stream' and size is None:
      raise InputError('data.image_size', 'data.pipeline=stream needs it for encoded images, such as 224')
    if part != 'train':
      data = drop_bad(data, part, max_bad, workers)
    if name in FILES:
      files[part] = data.name_of
    images = Images(data, size, center_crop=center_crop, crop_scale=crop_scale, max_bad=max_bad)
    return decode_all(images, workers) if pipeline == 'resident' else images

  build_pipeline = lambda train_split, part: make_pipeline(
    train_split, pipeline, batch_size, seed, workers, files.get(part)
  )
  train_split = load_split(train, image_size)
  test_split = load_split(source.test, eval_image_size or image_size, 'test') if source.test else None
  val_split = load_split(held_out, eval_image_size or image_size, 'val') if held_out else None
  _check_shapes(test_split or val_split or train_split if eval_image_size else train_split, val_split, test_split)
  mean, std = _choose_statistics(name, train, mean, std, _shape(train_split))
  splits = zip(('train', 'val', 'test'), (train, held_out, source.test), strict=True)
  fingerprints = {part: fingerprint(split) for part, split in splits if split}
  info = Info(source.class_names, _shape(train_split), mean, std, fingerprints, split_rule)
  val_pipeline, test_pipeline = (
    build_pipeline(part, name) if part else None for part, name in ((val_split, 'val'), (test_split, 'test'))
  )
  return Dataset(build_pipeline(train_split, 'train'), val_pipeline, test_pipeline, info)


def check(
  *,
  pipeline: str,
  batch_size: int,
  val: float,
  test: str,
  fold: tuple[int, ...],
  limit: int | None,
  image_size: int | None,
  eval_image_size: int | None,
  center_crop: float,
  crop_scale: tuple[float, ...],
  mean: tuple[float, ...] | None,
  std: tuple[float, ...] | None,
  workers: int,
  max_bad: int,
  seed: int,
  **others: Any,
) -> None:
  """Raise InputError where a field of ``load`` is of another type or out of its range, whatever the data is."""
  config_lib.check_types('data', locals() | others)
  check_word('data.pipeline', pipeline, PIPELINES)
  _check_fields(batch_size, val, limit, seed, mean, std)
  _check_fold(fold, val)
  _check_image_fields(image_size, eval_image_size, center_crop, crop_scale, workers, max_bad)
  check_word('data.test', test, TESTED)


def _choose_examples(
  name: str,
  source: Source,
  labels: Labels,
  classes: tuple[int | str, ...] | None,
  val: float,
  fold: tuple[int, ...],
  limit: int | None,
  seed: int,
) -> tuple[Source, Split, Split | None]:
  """Return the source of the chosen classes, the examples of its training split that train, and those held out."""
  source = check_labels(name, source, labels)
  if classes is not None:
    source = check_labels(name, keep_classes(source, classes), labels)
  train, held_out = hold_out(source, val, seed, fold, labels)
  if limit is not None and limit < len(train.labels):
    train = train.take(draw(train, limit, seed, 'limit', labels))
  if labels.are_classes:
    report_untrained(train.labels, source.class_names)
  return source, train, held_out


def _choose_statistics(
  name: str,
  train: Split,
  mean: tuple[float, ...] | None,
  std: tuple[float, ...] | None,
  shape: tuple[int, int, int],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Return mean and standard deviation of each channel: those given, published, ImageNet's, or of the examples."""
  if not (mean and std):
    mean, std = STATISTICS.get(name) or (channel_statistics(train.images) if isinstance(train, Arrays) else IMAGENET)
  _check_statistics(mean, std, shape)
  return mean, std


def make_pipeline(
  split: LoadedSplit, kind: str, batch_size: int, seed: int, workers: int, name_of: Callable[[int], str] | None
) -> Pipeline:
  """Return the batches of a split.

  Args:
    split: the examples; encoded ones are streamed whatever ``kind`` is.
    kind: one of ``PIPELINES``.
    batch_size: examples a step, over all devices.
    seed: of the order and of the crops.
    workers: threads that read images.
    name_of: an index to the path of its file, where examples are files.
  """
  made: Pipeline
  if kind == 'resident' and isinstance(split, Arrays):
    made = Resident(split, batch_size=batch_size, seed=seed)
  else:
    made = Stream(_examples(split), batch_size=batch_size, seed=seed, workers=workers)
  made.name_of = name_of
  return made


def first_batch(pipeline: Pipeline) -> Batch:
  """Return the first batch of the training."""
  get_batch: Callable[..., Batch] = pipeline.get_batch
  return get_batch(pipeline.device_data, next(pipeline.step_inputs(0, 1)))


def resize(data: Arrays, size: int, center_crop: float, labels: Labels = CLASSES) -> Arrays:
  """Return ``data`` with every image resized and center-cropped to ``size`` pixels a side, if it is not so already.

  Raises:
    InputError: ``labels`` are maps of the pixels, which would have to be resized too.
  """
  if data.images.shape[1:3] == (size, size) and center_crop == 1.0:
    return data
  if labels.rank == 2:
    raise InputError('data.image_size', f'labels are {labels.kind}, which are not resized', fix='leave it out')
  return Arrays(np.stack([decode.resize_image(image, size, center_crop) for image in data.images]), data.labels)


def read_source(
  name: str,
  data_dir: str | None,
  path: str | None,
  download: bool,
  seed: int,
  split_rule: int,
  labels: Labels,
  tested: str = 'split',
) -> Source:
  readers: dict[str, Callable[[], Source]] = {
    'digits': arrays.read_digits,
    'arrays': lambda: arrays.read_npz(path, labels),
    'folder': lambda: folder.read_folder(path, seed, split_rule, tested),
    'csv': lambda: csv_file.read_csv(path, seed, split_rule, tested),
  }
  if path and name not in PATHS:
    raise InputError(
      'data.path', f'{path}, but data.name={name!r} reads no file', fix=f'set data.name to {" or ".join(PATHS)}'
    )
  if name in readers:
    source = readers[name]()
    return source if name in FILES else _with_tested(name, source, tested)
  tfds.check_access(name, data_dir)
  known = tfds.list_known(data_dir)
  if name not in known:
    fix = f'a TFDS set of that name is not in {tfds.root(data_dir)}: {tfds.prepare_again(name, data_dir)}'
    raise InputError('data.name', f'unknown data set {name!r:.100}', fix=f'{nearest(name, {*readers, *known})}; {fix}')
  if download and name in tfds.PREPARABLE and not tfds.is_prepared(name, data_dir):
    published.prepare(name, data_dir)
  return tfds.read(name, data_dir, seed, tested)


def _with_tested(name: str, source: Source, tested: str) -> Source:
  """Return ``source``, which came with a test split, without it where ``tested`` is 'none'.

  Raises:
    InputError: ``tested`` is 'val'.
  """
  if tested == 'val':
    raise InputError('data.test', f"'val', but {name} has a test split", fix="leave it at 'split'")
  return source._replace(test=None) if tested == 'none' else source


def _check_fields(
  batch_size: int,
  val: float,
  limit: int | None,
  seed: int,
  mean: tuple[float, ...] | None,
  std: tuple[float, ...] | None,
) -> None:
  check_range('data.seed', seed, low=0, below=2**63)
  check_range('data.batch_size', batch_size, low=1)
  check_range('data.val', val, low=0, below=1)
  check_range('data.limit', limit, low=1)
  if (mean is None) != (std is None):
    raise InputError('data.mean', 'give data.mean and data.std, or neither')


def _check_fold(fold: tuple[int, ...], val: float) -> None:
  if fold and not (len(fold) == 2 and 0 <= fold[0] < fold[1] and fold[1] > 1):
    raise InputError('data.fold', expected='() or (k, n), part k of n from 0 to n - 1, n at least 2', found=fold)
  if fold and val:
    raise InputError('data.fold', f'{fold}, but data.val={val} holds examples out too', fix='leave data.val at 0')


def _check_image_fields(
  image_size: int | None,
  eval_image_size: int | None,
  center_crop: float,
  crop_scale: tuple[float, ...],
  workers: int,
  max_bad: int,
) -> None:
  for field, size in (('image_size', image_size), ('eval_image_size', eval_image_size)):
    check_range(f'data.{field}', size, low=1, unit='pixels')
  check_range('data.center_crop', center_crop, above=0, high=1)
  if crop_scale and not (len(crop_scale) == 2 and 0.0 < crop_scale[0] <= crop_scale[1] <= 1.0):
    raise InputError('data.crop_scale', expected='() or two ascending shares in (0, 1]', found=crop_scale)
  check_range('data.workers', workers, low=1)
  check_range('data.max_bad', max_bad, low=0)


def _check_shapes(first: LoadedSplit, *others: LoadedSplit | None) -> None:
  for other in others:
    if other is not None and _shape(other) != _shape(first):
      raise InputError(
        'data.image_size', f'the splits differ: images of {_shape(first)} and of {_shape(other)}', fix='set it'
      )


def _check_statistics(mean: tuple[float, ...], std: tuple[float, ...], shape: tuple[int, int, int]) -> None:
  if not len(mean) == len(std) == shape[2] or min(std) <= 0:
    expected = f'{shape[2]} numbers each, one a channel, and std above 0'
    raise InputError('data.mean', expected=expected, found=f'mean {mean} and std {std}')


def _shape(loaded: LoadedSplit) -> tuple[int, int, int]:
  return loaded.images.shape[1:] if isinstance(loaded, Arrays) else loaded.image_shape


def _examples(loaded: LoadedSplit) -> Examples:
  """Return what a ``Stream`` reads."""
  if not isinstance(loaded, Arrays):
    return Examples(
      loaded.size, loaded.image_shape, loaded.get, loaded.split.labels.shape[1:], loaded.split.labels.dtype
    )
  images, labels = loaded
  get = lambda index, draws: (images[index], labels[index])
  return Examples(len(labels), images.shape[1:], get, labels.shape[1:], labels.dtype)
