"""`jaxres predict`: the likeliest classes of image files, by a run or by weights."""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxres import data, models, pretrained, workdir
from jaxres.data import decode, folder
from jaxres.data.augment import normalize
from jaxres.errors import InputError

IMAGE_SIZE, CENTER_CROP = 224, 0.875  # of weights that come alone: torchvision's evaluation, 224 of 256
SMALL = 32  # pixels a side of weights that come alone with a stem for small images: CIFAR's, not cropped


class Predictor(NamedTuple):
  """A network and what is done to an image before it."""

  model: models.ResNet
  variables: Any
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]  # height, width, channels
  center_crop: float  # the share of the short side that is kept
  mean: tuple[float, ...]
  std: tuple[float, ...]


class Prediction(NamedTuple):
  """What a network makes of an image."""

  path: pathlib.Path
  logits: np.ndarray | None  # float32 [K]; None where the image cannot be read
  problem: str = ''


def load(source: str, step: str = 'best', class_names: str | None = None, image_size: int | None = None) -> Predictor:
  """Return what predicts as the run or the weights at ``source`` do.

  A run evaluates as its config says; weights see images as torchvision's evaluation does, or whole at 32 pixels where
  the stem is for small images, with ImageNet's statistics.

  Args:
    source: as of ``pretrained.read``.
    step: of a run: ``'best'``, ``'latest'`` or a number.
    class_names: a text file with a name a line; the classes are numbers where nothing says their names.
    image_size: pixels a side, in place of the source's own.

  Raises:
    InputError: the source or the file cannot be used.
  """
  found = pretrained.read(source, step)
  names = pretrained.read_class_names(class_names, found) if class_names else found.class_names
  names = names or tuple(map(str, range(found.options['num_classes'])))
  if image_size is not None and image_size < 1:
    raise InputError(f'--image_size: expected pixels, 1 or more, found {image_size}')
  run = pathlib.Path(source.removeprefix('jaxres:')).expanduser()
  if not (run / 'config.json').is_file() or (run / 'model.json').is_file():
    model = found.model()
    is_large = model.stem_type in ('imagenet', 'deep')
    size = image_size or (IMAGE_SIZE if is_large else SMALL)
    shape = (size, size, found.channels)
    mean, std = (statistic[: found.channels] for statistic in data.IMAGENET)
    predictor = Predictor(model, found.variables, names, shape, CENTER_CROP if is_large else 1.0, mean, std)
  else:
    config = workdir.read_config(run) or {}
    info, fields = workdir.read_data(run, 'image_shape', 'mean', 'std'), config['data']
    if info is None:
      raise InputError(f'{run}/data.json: missing: no image_shape, mean and std; the run must be newer')
    size = image_size or fields['eval_image_size'] or fields['image_size']
    shape = (size, size, found.channels) if size else tuple(info['image_shape'])
    model = models.create(**found.options, dtype=config['model']['dtype'])
    keep = fields['center_crop'] if size else 1.0
    predictor = Predictor(model, found.variables, names, shape, keep, tuple(info['mean']), tuple(info['std']))
  if shape[0] != shape[1] or shape[2] not in (1, 3):
    raise InputError(f'{source}: it sees images of {list(shape)}; predict makes square ones of 1 or 3 channels')
  return predictor


def find(words: Iterable[str]) -> list[pathlib.Path]:
  """Return the files that ``words`` name: themselves, and of a folder all images at any depth, by name.

  Raises:
    InputError: a folder has no images.
  """
  found: list[pathlib.Path] = []
  for word in words:
    path = pathlib.Path(word).expanduser()
    inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in folder.SUFFIXES and p.is_file())
    if path.is_dir() and not inside:
      raise InputError(f'{word}: no images there: expected files that end in {", ".join(folder.SUFFIXES)}')
    found += inside or [path]
  return found


def predict(predictor: Predictor, paths: Sequence[pathlib.Path], batch_size: int = 32) -> Iterator[Prediction]:
  """Yield the logits of each image, in the order of ``paths``; an image that cannot be read has its problem instead."""

  @jax.jit
  def run(variables: Any, images: jax.Array) -> jax.Array:
    logits: Any = predictor.model.apply(variables, normalize(images, predictor.mean, predictor.std), train=False)
    return logits

  size = min(batch_size, len(paths))
  for begin in range(0, len(paths), size):
    batch, problems = read_batch(paths[begin : begin + size], predictor, size)
    if len(problems) == len(paths[begin : begin + size]):  # nothing to compile for
      yield from (Prediction(paths[begin + i], None, problem) for i, problem in problems.items())
      continue
    logits = np.asarray(run(predictor.variables, batch))
    problems = not_finite(logits) | problems
    for i, path in enumerate(paths[begin : begin + size]):
      yield Prediction(path, None if i in problems else logits[i], problems.get(i, ''))


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
  """Return an image as ``predictor`` sees it, uint8 ``[H, W, C]``; a colour image is made grey where C is 1.

  Raises:
    OSError: the file cannot be read.
    BadImageError: it is no image.
  """
  height, _, channels = predictor.image_shape
  pixels = decode.whole(path.read_bytes(), height, predictor.center_crop)
  return pixels if channels == 3 else np.asarray(Image.fromarray(pixels).convert('L'))[..., None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres predict`."""
  parser.add_argument('source', metavar='SOURCE', help='a run, a torch file, torchvision:NAME, or of `jaxres convert`')
  parser.add_argument('images', metavar='IMAGE', nargs='+', help='files, or folders of them')
  parser.add_argument('--top', type=int, default=5, metavar='N', help='classes that are shown (5)')
  parser.add_argument('--json', action='store_true', help='print a JSON object a line, one for each image')
  parser.add_argument('--step', default='best', metavar='N', help="of a run: 'best' (default), 'latest' or a number")
  parser.add_argument('--batch_size', type=int, default=32, metavar='N', help='images at a time (32)')
  parser.add_argument(
    '--image_size', type=int, metavar='N', help="pixels a side; a run's own; of weights 224, or 32 with a CIFAR stem"
  )
  parser.add_argument('--class_names', metavar='FILE', help='text: a class name a line, in the order of the logits')


def run(args: argparse.Namespace) -> int:
  """Print the likeliest classes of every image; return 2 where one cannot be read."""
  for name in ('top', 'batch_size'):
    if getattr(args, name) < 1:
      raise InputError(f'--{name}: expected 1 or more, found {getattr(args, name)}')
  paths = find(args.images)
  predictor = load(args.source, args.step, args.class_names, args.image_size)
  status = 0
  for path, logits, problem in predict(predictor, paths, args.batch_size):
    if logits is None:
      print(f'error: {path}: {problem}', file=sys.stderr)
      status = 2
      continue
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    likeliest = np.argsort(-logits, kind='stable')[: args.top]
    rows = [(predictor.class_names[k], float(probabilities[k])) for k in likeliest]
    if args.json:
      print(json.dumps({'image': str(path), 'top': [{'class': name, 'probability': p} for name, p in rows]}))
    else:
      print('\n'.join([str(path), *(f'  {p:8.2%}  {name}' for name, p in rows)]))
  return status
