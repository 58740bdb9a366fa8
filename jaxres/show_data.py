"""`jaxres show-data`: a picture of what the model sees, images in the first column and their augmentations beside."""

import argparse
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxres import config as config_lib
from jaxres import data
from jaxres.data import augment as augment_lib
from jaxres.errors import InputError
from jaxres.step import step_key

CELL = 64  # pixels, at least, of an image in the picture
GAP = 2  # white pixels between two images


def draw(dataset: data.Dataset, augment: augment_lib.Augment, seed: int, examples: int, draws: int) -> np.ndarray:
  """Return the first training images as the model sees them at each of the first steps.

  Args:
    dataset: of ``data.load``.
    augment: of ``augment.make``.
    seed: ``train.seed``.
    examples: how many images, of the first batch.
    draws: how many steps; the first is the very batch that training begins with.

  Returns:
    uint8 ``[examples, 1 + draws, H, W, C]``; the originals come first.
  """
  batch = data.first_batch(dataset.train)

  @jax.jit
  def see(step: int, images: jax.Array, label: jax.Array) -> jax.Array:
    return augment.batch(step_key(jax.random.key(seed), step), images, label, len(dataset.info.class_names))[0]

  columns = [batch['image'], *(see(step, batch['image'], batch['label']) for step in range(draws))]
  return np.asarray(jnp.stack(columns, axis=1)[:examples])


def make_picture(grid: np.ndarray) -> Image.Image:
  """Return uint8 ``[rows, columns, H, W, C]`` as a picture, small images enlarged; C is 1 or 3.

  Raises:
    InputError: the images have another number of channels.
  """
  rows, columns, height, width, channels = grid.shape
  if channels not in (1, 3):
    raise InputError(f'show-data: images have {channels} channels; only 1 or 3 can be shown')
  times = math.ceil(CELL / max(height, width))
  grid = grid.repeat(times, axis=2).repeat(times, axis=3)
  grid = np.pad(grid, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
  whole = grid.transpose(0, 2, 1, 3, 4).reshape(rows * grid.shape[2], columns * grid.shape[3], channels)
  return Image.fromarray(whole if channels == 3 else whole[..., 0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres show-data`."""
  parser.add_argument('--config', metavar='FILE', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--out', metavar='FILE', required=True, help='the picture to write, such as grid.png')
  parser.add_argument('--examples', type=int, default=8, metavar='N', help='rows: training images (8)')
  parser.add_argument('--draws', type=int, default=8, metavar='N', help='columns beside the originals (8)')


def run(args: argparse.Namespace) -> None:
  """Write the picture and say where it is."""
  for name in ('examples', 'draws'):
    if getattr(args, name) < 1:
      raise InputError(f'--{name}: expected 1 or more, found {getattr(args, name)}')
  out = pathlib.Path(args.out)
  if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
    raise InputError(f'--out {out}: expected a picture, such as grid.png')
  options = config_lib.to_dict(config_lib.load(args.config, args.overrides))
  augment = augment_lib.make(**options['augment'])
  grid = draw(data.load(**options['data']), augment, options['train']['seed'], args.examples, args.draws)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    make_picture(grid).save(out)
  except OSError as error:
    raise InputError(f'--out: {out} cannot be written: {error.strerror or error}') from None
  print(f'{out}: {len(grid)} training images, the originals on the left, then steps 0 to {args.draws - 1}')
