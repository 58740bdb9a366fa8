"""`jaxres predict`: what a run or weights make of image files, such as their likeliest classes."""

import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxres import models, tasks, workdir
from jaxres.data import decode, listing
from jaxres.data.augment import normalize
from jaxres.errors import InputError, check_range, print_status
from jaxres.paths import read_regular, user_path
from jaxres.runtime.compiler import jit
from jaxres.weights import bundle, onnx_file, presets, sources

UNKNOWN = (
  'it does not say what images it was trained on: give --mean, --std and --image_size (and --center_crop, the share of '
  'the short side that is kept), such as --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --image_size 224 '
  f'--center_crop 0.875 for ImageNet as torchvision has it; or --preset {", ".join(presets.PRESETS)}; or predict by '
  'the run itself'
)
BATCH_SIZE = 32  # images at a time
_BATCHES = (1, 8)  # the smaller batches that there is a program for


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
  compute: 'Network | None' = None  # what computes the outputs in place of ``model``

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


class Prediction(NamedTuple):
  """What a network makes of an image."""

  path: pathlib.Path
  logits: np.ndarray | None  # the outputs, float32 [K]; None where the image cannot be read
  problem: str = ''


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


def find_images(words: Iterable[str]) -> list[pathlib.Path]:
  """Return the files that ``words`` name: themselves, and of a folder all images at any depth, by name.

  What is an image is what training takes for one, see ``listing``; broken links are left out, with a message.

  Raises:
    InputError: a folder has no images.
  """
  images: list[pathlib.Path] = []
  if not isinstance(words, str | os.PathLike | list | tuple | Iterator):
    raise InputError('images', expected='paths of image files or folders', found=type(words).__name__)
  for word in [words] if isinstance(words, str | os.PathLike) else words:
    path = user_path(word)
    images += list_images(path) if path.is_dir() else [path]
  return images


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the images in ``folder`` at any depth, by name.

  Raises:
    InputError: there are none.
  """
  listings = list(listing.walk(folder))
  images = sorted(pathlib.Path(path) for each in listings for path in each.images)
  broken = [path for each in listings for path in each.broken]
  if broken:
    print_status(
      f'{folder}: {len(broken)} images are links to nothing, or no files, and left out, such as {min(broken)}'
    )
  if not images:
    raise InputError(folder, 'no images there', expected=f'files that end in {", ".join(listing.SUFFIXES)}')
  return images


Network = Callable[
  [Any, np.ndarray], jax.Array | np.ndarray
]  # variables and uint8 [B, H, W, C] to outputs, float32 [B, ...]


def make_network(predictor: Predictor) -> Network:
  """Return the jitted function of variables and images to outputs; it compiles once for each size of a batch."""
  if predictor.compute:
    return predictor.compute
  model = predictor.get_model()

  @jit
  def run(variables: Any, images: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, normalize(images, predictor.mean, predictor.std), train=False)
    return logits

  return run


def make_features(predictor: Predictor) -> Network:
  """Return the jitted function of variables and images to what the classifier is given, float32 ``[B, D]``.

  Raises:
    InputError: as ``Predictor.get_model``.
  """
  model = predictor.get_model()

  @jit
  def run(variables: Any, images: jax.Array) -> jax.Array:
    images = normalize(images, predictor.mean, predictor.std)
    stages: Any = model.apply(variables, images, train=False, method='features')
    features: jax.Array = model.pool_features(stages).astype(np.float32)
    return features

  return run


def pad_size(count: int, batch_size: int) -> int:
  """Return the size of the batch that ``count`` images go in: one of at most three, so that little is compiled."""
  return next(size for size in (*_BATCHES, batch_size) if size >= count or size >= batch_size)


def run_batches(network: Network, variables: Any, images: np.ndarray, batch_size: int = BATCH_SIZE) -> np.ndarray:
  """Return the outputs of ``network`` for one or more images, uint8 ``[N, H, W, C]``.

  The last batch is filled up with zeros, and its outputs are cut off.
  """
  outputs = []
  batch_size = min(batch_size, max(len(images), BATCH_SIZE))  # a larger batch would be filled up with zeros
  for start in range(0, len(images), batch_size):
    part = images[start : start + batch_size]
    batch = np.zeros((min(pad_size(len(part), batch_size), batch_size), *part.shape[1:]), np.uint8)
    batch[: len(part)] = part
    outputs.append(np.asarray(network(variables, batch))[: len(part)])
  return np.concatenate(outputs)


def predict(
  predictor: Predictor, paths: Sequence[pathlib.Path], batch_size: int = BATCH_SIZE, network: Network | None = None
) -> Iterator[Prediction]:
  """Yield the logits of each image, in the order of ``paths``; an image that cannot be read has its problem instead.

  Args:
    predictor: of ``load``.
    paths: image files, strings too; ``find_images`` looks for them in folders.
    batch_size: images at a time.
    network: of ``make_network``; None makes one.

  Raises:
    InputError: an argument is of another type.
  """
  paths = check_paths(predictor, paths, batch_size)
  network = network or make_network(predictor)
  for start in range(0, len(paths), batch_size):
    part = paths[start : start + batch_size]
    batch, problems = read_batch(part, predictor, len(part))
    if len(problems) == len(part):  # nothing to compile for
      yield from (Prediction(part[i], None, problem) for i, problem in problems.items())
      continue
    logits = run_batches(network, predictor.variables, batch, batch_size)
    problems = not_finite(logits) | problems
    for i, path in enumerate(part):
      yield Prediction(path, None if i in problems else logits[i], problems.get(i, ''))


def check_paths(predictor: Any, paths: Any, batch_size: Any) -> list[pathlib.Path]:
  """Return ``paths`` as such; raise InputError where an argument of ``predict`` is of another type."""
  if not isinstance(predictor, Predictor):
    raise InputError('predictor', expected='what jaxres.predict.load returns', found=type(predictor).__name__)
  if isinstance(paths, str | os.PathLike):
    paths = [paths]
  if not isinstance(paths, Iterable) or (isinstance(paths, np.ndarray) and not paths.ndim):
    raise InputError('paths', expected='paths of image files', found=type(paths).__name__)
  paths = list(paths)
  odd = [type(path).__name__ for path in paths if not isinstance(path, str | os.PathLike)]
  if odd:
    raise InputError('paths', expected='paths of image files', found=odd[0], fix='predict reads the files itself')
  if type(batch_size) is not int or batch_size < 1:
    raise InputError('batch_size', expected='1 or more', found=f'{batch_size!r:.80}')
  return [user_path(path) for path in paths]


def not_finite(logits: np.ndarray) -> dict[int, str]:
  """Return what is wrong with the rows that hold what is no finite number, by their place."""
  return {int(i): 'the logits are not finite' for i in np.flatnonzero(~np.isfinite(logits).all(axis=1))}


def read_batch(paths: Sequence[pathlib.Path], predictor: Predictor, size: int) -> tuple[np.ndarray, dict[int, str]]:
  """Return ``size`` images, uint8 ``[size, H, W, C]``, zeros where there is none, and what is wrong with those."""
  batch = np.zeros((size, *predictor.image_shape), np.uint8)
  problems: dict[int, str] = {}
  for i, path in enumerate(paths):
    try:
      batch[i] = read(path, predictor)
    except (OSError, decode.BadImageError) as error:
      problems[i] = getattr(error, 'strerror', None) or str(error)
  return batch, problems


def read(path: pathlib.Path, predictor: Predictor) -> np.ndarray:
  """Return an image as ``predictor`` sees it, uint8 ``[H, W, C]``; a color image is made gray where C is 1.

  Raises:
    OSError: the file cannot be read.
    BadImageError: it is no image.
  """
  return decode_as_seen(read_regular(path, decode.MAX_FILE_BYTES), predictor)


def decode_as_seen(content: bytes, predictor: Predictor) -> np.ndarray:
  """Return the image in the ``content`` of a file as ``predictor`` sees it, uint8 ``[H, W, C]``.

  Raises:
    BadImageError: it is no image, or of another size where the network's images are not square.
  """
  height, width, channels = predictor.image_shape
  pixels = decode.decode_image(content, height if height == width else None, predictor.center_crop)
  if pixels.shape[:2] != (height, width):
    problem = f'{pixels.shape[0]}x{pixels.shape[1]} pixels, and the network, which is not square, sees {height}x{width}'
    raise decode.BadImageError(problem)
  return pixels if channels == 3 else np.asarray(Image.fromarray(pixels).convert('L'))[..., None]


def resize(pixels: np.ndarray, predictor: Predictor) -> np.ndarray:
  """Return an image in memory as ``predictor`` sees it, uint8 ``[H, W, C]``: as ``read`` has a file of these pixels.

  Args:
    pixels: uint8 ``[h, w, c]``; of one channel where the network takes three all are equal, and of three where it takes
      one they are made gray.
    predictor: of ``load``.

  Raises:
    InputError: the image has another number of channels, or of pixels where the network's images are not square.
  """
  height, width, channels = predictor.image_shape
  if pixels.shape[2] not in (1, 3) and pixels.shape[2] != channels:
    raise InputError('images', expected=f'{channels} channels', found=f'{list(pixels.shape)}')
  if height != width:
    if pixels.shape[:2] != (height, width):
      raise InputError('images', expected=f'{height}x{width} pixels', found=f'{pixels.shape[0]}x{pixels.shape[1]}')
  elif pixels.shape[:2] != (height, width) or predictor.center_crop != 1.0:
    pixels = decode.resize_image(pixels, height, predictor.center_crop)
  if pixels.shape[2] == channels:
    return pixels
  return np.asarray(Image.fromarray(pixels).convert('L'))[..., None] if channels == 1 else pixels.repeat(channels, 2)
