"""`jaxres show-data`: a picture of what the model sees, images in the first column and their augmentations beside."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from jaxres import config as config_lib
from jaxres import data
from jaxres.backend import jit
from jaxres.data import augment as augment_lib
from jaxres.data import order
from jaxres.data.stream import Stream
from jaxres.errors import InputError, printable
from jaxres.pictures import check_path, make_picture
from jaxres.step import step_key


def draw(dataset: data.Dataset, augment: augment_lib.Augment, seed: int, examples: int, draws: int) -> np.ndarray:
  """Return the first training images as the model sees them at each of the first steps.

  Args:
    dataset: of ``data.load``.
    augment: of ``augment.make``.
    seed: ``train.seed``.
    examples: how many images, of the first batch.
    draws: how many steps; the first is the very batch that training begins with.

  Returns:
    uint8 ``[examples, 1 + draws, H, W, C]``; the originals come first, whole: as evaluation sees them. Every column
    beside them has the random crops and the augmentation of its step.
  """
  train = dataset.train
  batch = data.first_batch(train)
  index = order.train_indices(train.seed, 0, train.batch_size, train.size)

  @jit
  def see(step: int, images: jax.Array, label: jax.Array) -> jax.Array:
    return augment.batch(step_key(jax.random.key(seed), step), images, label, len(dataset.info.class_names))[0]

  def cropped(step: int) -> jax.Array:  # a stream's crops are drawn on the host
    return jnp.asarray(train.crops(index, step)) if isinstance(train, Stream) else batch['image']

  columns = [see(step, cropped(step), batch['label'])[:examples] for step in range(draws)]
  return np.stack([train.images(index[:examples]), *map(np.asarray, columns)], axis=1)


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
  out = check_path('--out', args.out)
  options = config_lib.to_dict(config_lib.load(args.config, args.overrides))
  augment = augment_lib.make(**options['augment'])
  grid = draw(data.load(**options['data']), augment, options['train']['seed'], args.examples, args.draws)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    make_picture(grid).save(out)
  except OSError as error:
    raise InputError(f'--out: {out} cannot be written: {error.strerror or error}') from None
  print(f'{printable(out)}: {len(grid)} training images, the originals on the left, then steps 0 to {args.draws - 1}')
