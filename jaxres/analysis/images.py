"""Pictures of arrays: grids of images, maps laid over them, and what a page can hold."""

import base64
import io
import math
import pathlib
import struct
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxres import data, files
from jaxres.data import augment as augment_lib
from jaxres.data import sampler
from jaxres.data.stream import Stream
from jaxres.data.types import CLASSES, Labels
from jaxres.errors import InputError, printable
from jaxres.paths import output_path
from jaxres.runtime.compiler import jit
from jaxres.train.step import step_key

CELL = 64  # pixels, at least, of an image in a grid
GAP = 2  # white pixels between two images
TITLED = 112  # pixels, at least, of an image below a title
TITLE = 18  # pixels, of a line of text
THUMBNAIL = 96  # pixels, at most, of an image in a page


def make_picture(grid: np.ndarray, cell: int = CELL) -> Image.Image:
  """Return a grid of images as one picture.

  Args:
    grid: uint8 ``[rows, columns, H, W, C]``; C is 1 or 3.
    cell: smallest side of an image in the picture, in pixels.

  Returns:
    The images in a grid, enlarged by an integer factor.

  Raises:
    InputError: the images have another number of channels.
  """
  rows, columns, height, width, channels = grid.shape
  if channels not in (1, 3):
    raise InputError('images', expected='1 or 3 channels', found=channels)
  times = math.ceil(cell / max(height, width))
  grid = grid.repeat(times, axis=2).repeat(times, axis=3)
  grid = np.pad(grid, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
  picture = grid.transpose(0, 2, 1, 3, 4).reshape(rows * grid.shape[2], columns * grid.shape[3], channels)
  return Image.fromarray(picture if channels == 3 else picture[..., 0])


def add_titles(grid: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
  """Return uint8 ``[rows, columns, H, W, 3]`` as a picture, with a line of text over it and over each row.

  Args:
    grid: the images.
    rows: a title for each row; what does not fit is cut off.
    columns: a name for each column.
  """
  strips = [make_picture(row[None], TITLED) for row in grid]
  width, height = strips[0].size
  picture = Image.new('RGB', (width, TITLE + len(strips) * (TITLE + height)), 'white')
  pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
  for at, name in enumerate(columns):
    pen.text(((at + 0.5) * width / len(columns), TITLE / 2), printable(name), 'black', font, anchor='mm')
  for at, (title, strip) in enumerate(zip(rows, strips, strict=True)):
    top = TITLE + at * (TITLE + height)
    pen.text((2 * GAP, top + TITLE / 2), printable(title), 'black', font, anchor='lm')
    picture.paste(strip, (0, top + TITLE))
  return picture


def check_path(flag: str, path: str) -> pathlib.Path:
  """Return ``path``, which ``flag`` names, if a picture can be written of that kind; else raise InputError."""
  output = output_path(path, flag)
  if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
    raise InputError(f'{flag} {path}', expected='a picture, such as grid.png')
  return output


def write(path: pathlib.Path, picture: Image.Image) -> None:
  """Write ``picture`` to ``path``, of ``check_path``, as the kind that its name ends in, atomically.

  Raises:
    InputError: it cannot be written, or that kind cannot hold such a picture.
  """
  kind, content = Image.registered_extensions()[path.suffix.lower()], io.BytesIO()
  try:
    picture.save(content, kind)
  except (OSError, ValueError, KeyError, struct.error) as error:  # such as of a WebP of more than 16,383 pixels a side
    size = ' x '.join(map(str, picture.size))
    problem = f'{size} pixels cannot be written as {kind}: {error}'
    raise InputError(path, problem, fix='give a name that ends in .png') from None
  files.write_atomic(path, content.getvalue())


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """Return an image in dark gray with the positive part of a map over it.

  Args:
    image: uint8 ``[H, W, C]``.
    heat: float ``[H, W]``, in any unit: the largest value is the brightest.

  Returns:
    uint8 ``[H, W, 3]``.
  """
  import matplotlib  # slow

  positive = np.maximum(heat, 0)
  share = positive / positive.max() if positive.max() > 0 else positive
  color = matplotlib.colormaps['inferno'](share)[..., :3] * 255
  gray = image.mean(-1, keepdims=True)
  return np.rint(np.clip(0.35 * gray + 0.75 * color, 0, 255)).astype(np.uint8)


def as_rgb(image: np.ndarray) -> np.ndarray:
  """Return an image, uint8 ``[H, W, C]``, with three channels: one is repeated, others are cut to the first three."""
  return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)


def data_uri(image: np.ndarray) -> str:
  """Return an image, uint8 ``[H, W, C]``, as a URI of a few kilobytes: PNG, or a JPEG thumbnail of a large one."""
  picture, file = Image.fromarray(as_rgb(image)), io.BytesIO()
  kind = 'jpeg' if max(picture.size) > THUMBNAIL else 'png'
  picture.thumbnail((THUMBNAIL, THUMBNAIL))
  picture.save(file, kind, quality=85)
  return f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'


def filters(kernel: np.ndarray) -> np.ndarray:
  """Return the filters of a convolution as images: float ``[h, w, C, N]`` to uint8 ``[N, h, w, C]``.

  The levels of each filter go from its smallest to its largest weight; only kernels of 1 or 3 channels are colors.
  """
  kernel = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)
  low, high = (reduce(kernel, axis=(1, 2, 3), keepdims=True) for reduce in (np.min, np.max))
  return np.rint(255 * (kernel - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)


def draw_augmentations(
  dataset: data.Dataset,
  augment: augment_lib.Augment,
  seed: int,
  examples: int,
  draws: int,
  labels: Labels = CLASSES,
) -> np.ndarray:
  """Return the first training images as the model sees them at each of the first steps.

  Args:
    dataset: of ``data.load``.
    augment: of ``augment.make``.
    seed: ``train.seed``.
    examples: how many images, of the first batch.
    draws: how many steps; the first is the first batch of the training.
    labels: what they are: of the task.

  Returns:
    uint8 ``[examples, 1 + draws * V, H, W, C]``; the originals come first, as evaluation sees them. Every column
    beside them has the random crops and the augmentation of its step; V views of a step stand side by side.
  """
  train = dataset.train
  batch = data.first_batch(train)
  index = sampler.train_indices(train.seed, 0, train.batch_size, train.size)

  @jit
  def see(step: int, batch: data.Batch) -> jax.Array:
    key = step_key(jax.random.key(seed), step)
    images = augment.batch(key, batch, labels, len(dataset.info.class_names))['image']
    return images if images.ndim == 5 else images[None]

  def get_crops(step: int) -> jax.Array:  # a stream's crops are drawn on the host
    return jnp.asarray(train.get_crops(index, step)) if isinstance(train, Stream) else batch['image']

  views = [see(step, {**batch, 'image': get_crops(step)})[:, :examples] for step in range(draws)]
  return np.concatenate([train.get_images(index[:examples])[None], *map(np.asarray, views)]).swapaxes(0, 1)
