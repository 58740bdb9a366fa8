"""`jaxres predict`: what a run or weights make of image files, such as their likeliest classes."""

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxres.data import decode, listing
from jaxres.data.augment import normalize
from jaxres.errors import InputError, print_status
from jaxres.paths import read_regular, user_path
from jaxres.predictor import Network as Network
from jaxres.predictor import Predictor as Predictor
from jaxres.predictor import load as load
from jaxres.runtime.compiler import jit

BATCH_SIZE = 32  # images at a time
_BATCHES = (1, 8)  # the smaller batches that there is a program for


class Prediction(NamedTuple):
  """What a network makes of an image."""

  path: pathlib.Path
  logits: np.ndarray | None  # the outputs, float32 [K]; None where the image cannot be read
  problem: str = ''


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
