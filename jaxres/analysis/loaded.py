"""``jaxres.load``: a run or weights that answer for images in memory or in files, and are scored on data."""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxres import models, tasks
from jaxres import predict as predict_lib
from jaxres.analysis import compare, other_data, runs
from jaxres.analysis.scores import softmax
from jaxres.data.pixels import to_images
from jaxres.errors import InputError, check_word
from jaxres.runtime.compiler import enable_compilation_cache
from jaxres.weights import sources

Images = Any  # arrays of any library, or paths: what ``Loaded.predict`` takes


class Predictions(NamedTuple):
  """What a network makes of N images.

  Attributes:
    logits: the outputs, float32 ``[N, K]``; of a task without classes whatever the network's outputs are.
    class_names: K names, in the order of the logits.
    files: the paths of the images, in their order; None where they were arrays.
    task: what the outputs mean.
    temperature: that divides the logits before they become probabilities: of a bundle that is calibrated.
  """

  logits: np.ndarray
  class_names: tuple[str, ...]
  files: tuple[pathlib.Path, ...] | None
  task: tasks.Task
  temperature: float = 1.0

  @property
  def probabilities(self) -> np.ndarray:
    """Return the softmax of the logits over the temperature, float64 ``[N, K]``. Raises as ``labels``."""
    self._check_classes()
    return softmax(self.logits / self.temperature) if len(self.logits) else self.logits.astype(np.float64)

  @property
  def labels(self) -> np.ndarray:
    """Return the number of the likeliest class of each image, int ``[N]``.

    Raises:
      InputError: the task has no classes.
    """
    self._check_classes()
    return self.logits.argmax(axis=-1)

  @property
  def names(self) -> list[str]:
    """Return the name of the likeliest class of each image. Raises as ``labels``."""
    return [self.class_names[k] for k in self.labels]

  def _check_classes(self) -> None:
    if not self.task.labels.are_classes:
      raise InputError('the task of the run', f'it learns {self.task.labels.kind}, not classes', fix='use .logits')


class Evaluation(NamedTuple):
  """How a network scores on the examples of a split.

  Attributes:
    examples: how many.
    top1: the fraction whose likeliest class is the label; None of a task without classes.
    interval: the 95 % bootstrap interval of ``top1``.
    top5: the fraction whose label is among the five likeliest classes; None of 5 classes or fewer.
    loss: the mean, in nats where the task has classes.
    split: that was scored.
    data: which data, where it is not the run's; '' where it is.
    origin: which weights, and of a run which checkpoint.
    scores: everything that `jaxres evaluate --out` writes of the network.
  """

  examples: int
  top1: float | None
  interval: tuple[float, float] | None
  top5: float | None
  loss: float
  split: str
  data: str
  origin: str
  scores: Mapping[str, Any]


class Loaded:
  """A network with its weights and what is done to an image before it; ``load`` makes it.

  Attributes:
    model: the module of flax.linen; ``model.apply(variables, images, train=False)`` takes normalized floats. None of an
      ONNX file, which has no variables and no features either.
    variables: ``{'params': ..., 'batch_stats': ...}``.
    class_names: in the order of the logits; numbers where nothing says their names.
    image_shape: height, width and channels of what the network sees.
    mean: of each channel, on the scale 0..1.
    std: of each channel, on the scale 0..1.
    center_crop: the share of the short side of an image that is kept.
    origin: which weights, and of a run which checkpoint: the best by validation where there is one, else the latest.
  """

  def __init__(self, source: str, step: str, predictor: predict_lib.Predictor):
    self.model: models.ResNet | None = predictor.model
    self.variables: Any = predictor.variables
    self.class_names: tuple[str, ...] = predictor.class_names
    self.image_shape: tuple[int, int, int] = predictor.image_shape
    self.mean, self.std, self.center_crop = predictor.mean, predictor.std, predictor.center_crop
    self.origin: str = predictor.origin
    self._source, self._step, self._predictor = source, step, predictor
    self._network = predict_lib.make_network(predictor)

  @functools.cached_property
  def _features(self) -> predict_lib.Network:
    """Return what computes the features. Raises as ``predict.make_features``."""
    return predict_lib.make_features(self._predictor)

  def __repr__(self) -> str:
    shape = 'x'.join(map(str, self.image_shape))
    return f'<jaxres.load({self._source!r}): {self.origin}; {len(self.class_names)} classes, images of {shape}>'

  def predict(self, images: Images, batch_size: int = predict_lib.BATCH_SIZE) -> Predictions:
    """Return what the network makes of images, resized, cropped and normalized as its evaluation does.

    An image in memory and a file of equal pixels get equal answers, and an image alone those that it gets among others,
    up to the last bits of float32: at most three sizes of a batch are compiled.

    Args:
      images: uint8 ``[B, H, W, C]`` or ``[H, W, C]`` of any B, H and W, or floats from 0 to 1, which are rounded to 8
        bits as files have them; a list of such images of several sizes; or paths of image files or of folders.
      batch_size: images at a time.

    Returns:
      ``logits``, ``probabilities``, ``labels`` and ``names`` of N images, whatever N is; one image is N of 1.

    Raises:
      InputError: an argument is of another type, shape or dtype, or a file cannot be read; names it.
    """
    outputs, files = self._run(self._network, images, batch_size)
    if not len(outputs):
      outputs = np.zeros((0, len(self.class_names)), np.float32)
    return Predictions(outputs, self.class_names, files, self._predictor.task, self._predictor.temperature)

  def features(self, images: Images, batch_size: int = predict_lib.BATCH_SIZE) -> np.ndarray:
    """Return what the classifier is given: the pooled features of images, float32 ``[N, D]``.

    Args:
      images: as of ``predict``.
      batch_size: images at a time.

    Raises:
      InputError: as ``predict``.
    """
    outputs, _ = self._run(self._features, images, batch_size)
    width = self.variables['params']['head']['fc']['kernel'].shape[0]
    return outputs if len(outputs) else np.zeros((0, width), np.float32)

  def evaluate(self, data: Any = None, split: str | None = None, batch_size: int | None = None) -> Evaluation:
    """Return how the network scores on data.

    Args:
      data: None is the run's; else a folder of images, a CSV or an ``.npz`` file or the name of a data set; or
        ``(images, labels)``; or a dict with ``'test'``, ``'val'`` or ``'train'``, each such a pair, or arrays such as
        ``test_x`` and ``test_y``, and perhaps ``class_names``; or an iterable of pairs. Classes are matched by name
        where both have names; labels may be names.
      split: ``'train'``, ``'val'`` or ``'test'``; None is test of a run, and of other data test, val or all examples,
        the first that is there.
      batch_size: images at a time; None is that of the run's evaluation, or ``predict.BATCH_SIZE``.

    Raises:
      InputError: it is no data, has no such split or a class that the network does not know, or there is none because
        weights alone have no data.
    """
    if data is None:
      return self._evaluate_run('test' if split is None else split, batch_size)
    check_batch_size(batch_size)
    labels = self._predictor.task.labels
    if isinstance(data, str | os.PathLike):
      examples = other_data.read(os.fspath(data), split, labels=labels)
    else:
      examples = other_data.from_memory(data, split, labels)
    networks = {'run': self._predictor}
    compared = other_data.compare(networks, examples, batch_size or predict_lib.BATCH_SIZE, {'run': self._network})
    return _to_evaluation(compared, compared['runs']['run'])

  def _evaluate_run(self, split: str, batch_size: int | None) -> Evaluation:
    """Return the scores on the run's data, as `jaxres evaluate RUN` has them."""
    if not sources.is_run(self._source):
      raise InputError('data', f'{self._source} is no run and has no data', fix='give some, such as (images, labels)')
    check_word('split', split, runs.SPLITS, 'split')
    check_batch_size(batch_size)
    (run,) = runs.read_runs([sources.parse(self._source)[1]], self._step)
    compared, _ = compare.compare([run], split, batch_size)
    return _to_evaluation(compared, compared['runs'][run.name])

  def _run(
    self, network: predict_lib.Network, images: Images, batch_size: int
  ) -> tuple[np.ndarray, tuple[pathlib.Path, ...] | None]:
    """Return the outputs of ``network`` for images, and the paths of those that are files."""
    check_batch_size(batch_size)
    batch_size = batch_size or predict_lib.BATCH_SIZE
    paths = _to_paths(images)
    arrays = None if paths is not None else _to_arrays(images)
    items: Sequence[Any] = paths if arrays is None else arrays  # type: ignore[assignment]
    outputs = []
    for start in range(0, len(items), batch_size):
      part = items[start : start + batch_size]
      if paths is not None:
        batch, problems = predict_lib.read_batch(part, self._predictor, len(part))
        for at, problem in problems.items():
          raise InputError(part[at], problem)
      else:
        batch = np.stack([predict_lib.resize(image, self._predictor) for image in part])
      outputs.append(predict_lib.run_batches(network, self.variables, batch, batch_size))
    return np.concatenate(outputs) if outputs else np.empty((0, 0), np.float32), None if paths is None else tuple(paths)


def load(
  source: str | os.PathLike[str],
  step: str | int = sources.DEFAULT_STEP,
  *,
  class_names: str | None = None,
  preset: str | None = None,
  image_size: int | None = None,
  center_crop: float | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> Loaded:
  """Return a run or weights, ready to answer for images.

  Args:
    source: the workdir of a run, a torch file (``.pth``, ``.th``, ``.safetensors``, ...), ``'torchvision:resnet50'``,
      a directory that `jaxres convert` wrote, or a bundle or an ``.onnx`` file of `jaxres export`.
    step: of a run: ``'best'`` by validation, or the latest where there was none; ``'latest'``; or a number.
    class_names: a text file with a name a line, where the weights do not say theirs.
    preset: what is done to an image before weights that do not say it: a name of ``weights.presets.PRESETS``, such as
      ``'imagenet'`` or ``'cifar10'``.
    image_size: pixels a side, in place of the source's or the preset's.
    center_crop: the share of the resized short side that is kept, in place of the source's or the preset's.
    mean: of each channel, on the scale 0..1, in place of the source's or the preset's.
    std: standard deviation of each channel, on the scale 0..1.

  Raises:
    InputError: an argument is of another type, there is nothing that can be read, or it does not say what images it
      was trained on and nothing here does.
  """
  if not isinstance(source, str | os.PathLike):
    kind = type(source).__name__
    raise InputError('source', expected="a path or a name, such as 'runs/digits'", found=f'a {kind}')
  enable_compilation_cache()
  options: dict[str, Any] = {'mean': mean, 'std': std, 'center_crop': center_crop, 'preset': preset}
  predictor = predict_lib.load(os.fspath(source), f'{step}', class_names, image_size, **options)
  return Loaded(os.fspath(source), f'{step}', predictor)


def check_batch_size(batch_size: Any) -> None:
  """Raise InputError where ``batch_size`` is no whole number, 1 or more; None is fine."""
  if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
    raise InputError('batch_size', expected='a whole number, 1 or more', found=f'{batch_size!r:.80}')


def _to_paths(images: Images) -> list[pathlib.Path] | None:
  """Return ``images`` as the paths of files, those in folders too; None where they are no paths."""
  if isinstance(images, str | os.PathLike):
    return predict_lib.find_images([os.fspath(images)])
  if not isinstance(images, list | tuple) or not images:
    return None
  are_paths = [isinstance(each, str | os.PathLike) for each in images]
  if any(are_paths) and not all(are_paths):
    odd = images[are_paths.index(False)]
    raise InputError('images', expected='paths alone, or arrays alone', found=f'a {type(odd).__name__} among paths')
  return predict_lib.find_images(images) if all(are_paths) else None


def _to_arrays(images: Images) -> Sequence[np.ndarray]:
  """Return images in memory, each uint8 ``[H, W, C]``."""
  if not isinstance(images, list | tuple):
    if isinstance(images, Mapping) or not (hasattr(images, 'shape') or hasattr(images, '__array__')):
      expected = 'an array [B, H, W, C] or [H, W, C], a list of such images, or paths'
      raise InputError('images', expected=expected, found=f'a {type(images).__name__}')
    return list(to_images(images, 'images'))
  batches = [to_images(each, f'images[{at}]') for at, each in enumerate(images)]
  for at, batch in enumerate(batches):
    if len(batch) != 1:
      raise InputError(f'images[{at}]', expected='one image [H, W, C]', found=f'{list(batch.shape)}')
  return [batch[0] for batch in batches]


def _to_evaluation(compared: Mapping[str, Any], scores: Mapping[str, Any]) -> Evaluation:
  """Return the scores of one network, of ``compare``."""
  names = ('examples', 'top1', 'top5', 'loss')
  examples, top1, top5, loss = (scores.get(name) for name in names)
  interval = scores['intervals'].get('top1')
  parts = (compared['split'], compared.get('data', ''), scores['origin'], scores)
  return Evaluation(int(examples or 0), top1, interval, top5, float(loss or 0.0), *parts)
