"""A network with what is done to an image before it: a run, weights from elsewhere, a bundle or an ONNX file."""

import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxres import models, tasks, workdir
from jaxres.errors import InputError, check_range
from jaxres.paths import user_path
from jaxres.weights import bundle, onnx_file, presets, sources

# Variables and images, uint8 [B, H, W, C], to outputs, float32 [B, ...].
Network = Callable[[Any, np.ndarray], jax.Array | np.ndarray]
UNKNOWN = (
  'it does not say what images it was trained on: give --mean, --std and --image_size (and --center_crop, the share of '
  'the short side that is kept), such as --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --image_size 224 '
  f'--center_crop 0.875 for ImageNet as torchvision has it; or --preset {", ".join(presets.PRESETS)}; or predict by '
  'the run itself'
)


class Predictor(NamedTuple):
  """A network and what is done to an image before it."""

  model: models.ResNet | None  # None of an ONNX file
  variables: Any
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]  # height, width, channels
  center_crop: float  # the share of the short side that is kept
  mean: tuple[float, ...]
  std: tuple[float, ...]
  origin: str = ''  # which weights, and of a run which checkpoint
  task: tasks.Task = tasks.make('classification')  # what its outputs mean
  has_names: bool = True  # whether the classes are called by more than their numbers
  notes: tuple[str, ...] = ()  # what a person should know of the preprocessing
  temperature: float = 1.0  # that divides the logits before they become probabilities
  compute: Network | None = None  # what computes the outputs in place of ``model``

  def describe(self, outputs: np.ndarray, max_answers: int) -> tasks.Answer:
    """Return what ``outputs``, float32 ``[K]``, say of an image: of many parts, such as classes, the first."""
    return self.task.describe(outputs / np.float32(self.temperature), self.class_names, max_answers)

  def get_model(self) -> models.ResNet:
    """Return the model.

    Raises:
      InputError: there is none, but an ONNX file.
    """
    if self.model is None:
      fix = 'take the bundle that it is a part of, the run or the weights'
      raise InputError(self.origin, 'an ONNX file answers, and has no model to look into', fix=fix)
    return self.model


class InputSpec(NamedTuple):
  """What is done to an image; None is what is not known or not given."""

  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  image_size: tuple[int, int] | None = None  # height and width
  center_crop: float | None = None


def load(
  source: str,
  step: str = sources.DEFAULT_STEP,
  class_names: str | None = None,
  image_size: int | None = None,
  *,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
  center_crop: float | None = None,
  preset: str | None = None,
  fallback: str | None = None,
) -> Predictor:
  """Return what predicts as the run or the weights at ``source`` do.

  A run evaluates as its config says, and what `jaxres convert` wrote of a run as that run does. torchvision's published
  weights see images as torchvision's evaluation does. Other weights do not say what they see: it must be given.

  Args:
    source: as of ``sources.read``; or a single ``.onnx`` file that `jaxres export` wrote.
    step: of a run: ``'best'``, ``'latest'`` or a number.
    class_names: a text file with a name a line; the classes are numbers where nothing says their names.
    image_size: pixels a side, in place of the source's own.
    mean: of each channel, on the scale 0..1, in place of the source's own; one number is that of every channel.
    std: standard deviation of each channel, on the scale 0..1.
    center_crop: the share of the resized short side that is kept, in place of the source's own.
    preset: the name of mean, std, size and crop, in place of the source's own: one of ``presets.PRESETS``.
    fallback: a preset for a source that says nothing; it is noted where it is used. None uses none.

  Raises:
    InputError: the source or the file cannot be used, or what its images are normalized by is not known.
  """
  if not isinstance(source, str | os.PathLike):
    raise InputError('source', expected='a path or torchvision:NAME', found=type(source).__name__)
  source, step = os.fspath(source), str(step)
  square = _check_size(image_size)
  given = _check_input_spec(InputSpec(_floats('mean', mean), _floats('std', std), square, center_crop))
  if onnx_file.is_onnx(source):
    return _load_onnx(source, class_names, preset, given)
  pretrained = sources.read(source, step)
  count = pretrained.options['num_classes']
  names = pretrained.class_names if class_names is None else sources.read_class_names(class_names, count)
  has_names = names is not None
  notes: tuple[str, ...] = ()
  names = names or tuple(map(str, range(count)))
  kind, place = sources.parse(source)
  if kind == 'jaxres' and not sources.is_described(user_path(place)):
    if preset is not None:
      raise InputError('--preset', f'{preset!r:.80}, but {source} is a run, which has its own', fix='leave it out')
    model, known, shape, task = _of_run(pretrained, user_path(place), image_size)
  else:
    model, task = pretrained.model(), tasks.make('classification')
    known = _read_published(place) if kind == 'torchvision' else _read_preprocessing(pretrained)
    if preset is None and known.mean is None and given.mean is None and fallback is not None:
      preset, notes = fallback, (f'{source} does not say its preprocessing: taken is the preset {fallback}',)
    known = known if preset is None else _of_preset(preset)
    shape = (*(given.image_size or known.image_size or (0, 0)), pretrained.channels)
  used_mean, used_std = (
    _channels(value, pretrained.channels, source) for value in (given.mean or known.mean, given.std or known.std)
  )
  if not (used_mean and used_std and shape[0]):
    raise InputError(source, UNKNOWN)
  _check_channels(source, shape)
  keep = given.center_crop or known.center_crop or 1.0
  parts = (model, pretrained.variables, names, shape, keep, used_mean, used_std, pretrained.origin, task)
  return Predictor(*parts, has_names, notes, _read_temperature(source))


def _load_onnx(source: str, class_names: str | None, preset: str | None, given: InputSpec) -> Predictor:
  """Return what predicts as an ONNX file does, which has its preprocessing inside. Raises as ``load``."""
  file = onnx_file.read(user_path(source))
  if preset or given != InputSpec():
    problem = f'{source} is an ONNX file, which has its preprocessing inside'
    raise InputError('--preset, --image_size, --mean, --std, --center_crop', problem, fix='leave them out')
  names = file.class_names
  if class_names is not None:
    names = sources.read_class_names(class_names, len(names))
  shape, (mean, std, _, keep) = (*file.preprocessing.image_size, file.channels), file.preprocessing
  _check_channels(source, shape)
  task, numbers = tasks.make(file.task), tuple(map(str, range(len(names))))
  origin, has_names = f'{source}, by onnxruntime', names != numbers
  known = (names, shape, keep, mean, std, origin, task, has_names)
  return Predictor(None, {}, *known, temperature=file.temperature, compute=file.run)


def _check_channels(source: str, shape: tuple[int, int, int]) -> None:
  if shape[2] not in (1, 3):
    raise InputError(source, f'it sees images of {list(shape)}', fix='predict makes images of 1 or 3 channels')


def _read_temperature(source: str) -> float:
  """Return the temperature of the bundle at ``source``; 1 where it is none, or is not calibrated."""
  directory = user_path(sources.parse(source)[1])
  return (bundle.read_description(directory)['temperature'] or 1.0) if bundle.is_bundle(directory) else 1.0


def _of_run(
  pretrained: sources.Pretrained, run: pathlib.Path, image_size: int | None
) -> tuple[models.ResNet, InputSpec, tuple[int, int, int], tasks.Task]:
  """Return the network of a run, what it does to an image, the shape that it sees, and what its outputs mean."""
  config = workdir.read_config(run) or {}
  info, fields = workdir.read_data(run, 'image_shape', 'mean', 'std'), config['data']
  if info is None:
    raise InputError(f'{run}/data.json', 'missing: no image_shape, mean and std', fix='the run must be newer')
  size = image_size or fields['eval_image_size'] or fields['image_size']
  height, width, channels = (size, size, pretrained.channels) if size else info['image_shape']
  keep = fields['center_crop'] if size else 1.0
  known = InputSpec(tuple(info['mean']), tuple(info['std']), (height, width), keep)
  model = models.create(**pretrained.options, dtype=config['model']['dtype'])
  return model, known, (height, width, channels), tasks.make_from(config['train'])


def _floats(name: str, values: Any) -> tuple[float, ...] | None:
  """Return numbers that were given from Python, one or several."""
  try:
    return None if values is None else tuple(map(float, values if isinstance(values, Iterable) else [values]))
  except (TypeError, ValueError):
    raise InputError(name, expected='numbers, one a channel', found=f'{values!r:.80}') from None


def _check_size(image_size: int | None) -> tuple[int, int] | None:
  """Return height and width of a square; raise InputError where ``image_size`` is no whole number in its range."""
  check_range('--image_size', image_size, low=1, unit='pixels')
  check_range('--image_size', image_size, high=workdir.MAX_SIDE, unit='pixels')
  if image_size is not None and type(image_size) is not int:
    raise InputError('--image_size', expected='a whole number of pixels', found=f'{image_size!r:.80}')
  return None if image_size is None else (image_size, image_size)


def _check_input_spec(given: InputSpec) -> InputSpec:
  """Return ``given``; raise InputError where a value is out of its range."""
  check_range('--center_crop', given.center_crop, above=0, high=1)
  if (given.mean is None) != (given.std is None):
    raise InputError('--mean', 'give --mean and --std, or neither')
  if given.std is not None and not all(0 < value < float('inf') for value in given.std):
    raise InputError('--std', expected='numbers above 0', found=given.std)
  return given


def _channels(values: tuple[float, ...] | None, channels: int, source: str) -> tuple[float, ...] | None:
  """Return a statistic of each channel; one number is that of all."""
  if values is not None and len(values) not in (1, channels):
    raise InputError(f'{source}: --mean and --std', expected=f'{channels} numbers, one a channel', found=len(values))
  return values and (values * channels if len(values) == 1 else values)


def _read_preprocessing(pretrained: sources.Pretrained) -> InputSpec:
  """Return what is done to an image before ``pretrained``, as its ``model.json`` says; nothing where it does not."""
  known = pretrained.preprocessing
  if known is None:
    return InputSpec()
  return InputSpec(known.mean, known.std, known.image_size, known.center_crop)


def _read_published(place: str) -> InputSpec:
  """Return what is done to an image where ``place`` is weights that somebody published and jaxres knows, or nothing."""
  name = presets.recognize(place, user_path(place))
  return _of_preset(name) if name else InputSpec()


def _of_preset(name: str) -> InputSpec:
  """Return what the preset called ``name`` does to an image. Raises as ``presets.find``."""
  preset = presets.find(name)
  return InputSpec(preset.mean, preset.std, preset.image_size, preset.center_crop)
