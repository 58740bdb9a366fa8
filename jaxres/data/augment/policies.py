"""RandAugment and TrivialAugment: each image goes through operations drawn from a table, all equally likely."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxres.data.augment import geometry, pixels
from jaxres.errors import check_word

BINS = 31  # magnitudes from the least to the greatest; torchvision's number
# What moves pixels: magnitudes float64 [N], height, width to the coefficients of affine maps, [N, 6].
MAPS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
  'Identity': lambda m, h, w: _maps(m, (1, 0, 0), (0, 1, 0)),
  'ShearX': lambda m, h, w: _maps(m, (1, m, 0), (0, 1, 0)),
  'ShearY': lambda m, h, w: _maps(m, (1, 0, 0), (m, 1, 0)),
  'TranslateX': lambda m, h, w: _maps(m, (1, 0, -np.trunc(m)), (0, 1, 0)),
  'TranslateY': lambda m, h, w: _maps(m, (1, 0, 0), (0, 1, -np.trunc(m))),
  'Rotate': geometry.rotation,
}
# What changes levels by arithmetic: uint8 [H, W, C] and a magnitude, float32. Beside MAPS and these there is Equalize.
CHANGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'Brightness': lambda image, m: pixels.brightness(image, 1 + m),
  'Color': lambda image, m: pixels.color(image, 1 + m),
  'Contrast': lambda image, m: pixels.contrast(image, 1 + m),
  'Sharpness': lambda image, m: pixels.sharpness(image, 1 + m),
  'Posterize': lambda image, m: pixels.posterize(image, jnp.round(m).astype(jnp.int32)),
  'Solarize': pixels.solarize,
  'AutoContrast': lambda image, m: pixels.autocontrast(image),
}
KINDS = dict.fromkeys(MAPS, 0) | {'Equalize': 1} | {name: number for number, name in enumerate(CHANGES, 2)}


class Range(NamedTuple):
  """The magnitudes of an operation, evenly spaced; where ``signed``, one half of the draws has them negative."""

  low: float = 0.0
  high: float = 0.0
  signed: bool = False


def randaugment(height: int, width: int) -> dict[str, Range]:
  """Return the operations of RandAugment (arXiv 1909.13719) with the magnitudes of torchvision's ``RandAugment``.

  Shears in pixels a pixel, translations in pixels, rotations in degrees, Posterize in bits, Solarize in levels; of
  Brightness, Color, Contrast and Sharpness the factor is 1 plus the magnitude.
  """
  return {
    'Identity': Range(),
    'ShearX': Range(0.0, 0.3, signed=True),
    'ShearY': Range(0.0, 0.3, signed=True),
    'TranslateX': Range(0.0, 150 / 331 * width, signed=True),
    'TranslateY': Range(0.0, 150 / 331 * height, signed=True),
    'Rotate': Range(0.0, 30.0, signed=True),
    'Brightness': Range(0.0, 0.9, signed=True),
    'Color': Range(0.0, 0.9, signed=True),
    'Contrast': Range(0.0, 0.9, signed=True),
    'Sharpness': Range(0.0, 0.9, signed=True),
    'Posterize': Range(8.0, 4.0),
    'Solarize': Range(255.0, 0.0),
    'AutoContrast': Range(),
    'Equalize': Range(),
  }


def trivialaugment(height: int, width: int) -> dict[str, Range]:
  """Return those of TrivialAugment's wide space (arXiv 2103.10158), as torchvision's ``TrivialAugmentWide``."""
  return {
    'Identity': Range(),
    'ShearX': Range(0.0, 0.99, signed=True),
    'ShearY': Range(0.0, 0.99, signed=True),
    'TranslateX': Range(0.0, 32.0, signed=True),
    'TranslateY': Range(0.0, 32.0, signed=True),
    'Rotate': Range(0.0, 135.0, signed=True),
    'Brightness': Range(0.0, 0.99, signed=True),
    'Color': Range(0.0, 0.99, signed=True),
    'Contrast': Range(0.0, 0.99, signed=True),
    'Sharpness': Range(0.0, 0.99, signed=True),
    'Posterize': Range(8.0, 2.0),
    'Solarize': Range(255.0, 0.0),
    'AutoContrast': Range(),
    'Equalize': Range(),
  }


class Table(NamedTuple):
  """All that can be drawn, each row equally likely: every operation with every magnitude and sign."""

  kind: jax.Array  # int32 [N], of KINDS
  magnitude: jax.Array  # float32 [N]
  matrix: jax.Array  # int32 [N, 6], of geometry.to_fixed_point


def make_table(ranges: Mapping[str, Range], bins: np.ndarray, height: int, width: int) -> Table:
  """Return the rows of ``ranges`` with the magnitudes numbered ``bins``, int ``[M]`` in ``[0, BINS)``."""
  rows = []
  for name, (low, high, signed) in ranges.items():
    magnitude = np.linspace(low, high, BINS, dtype=np.float32)[bins]
    magnitude = np.concatenate([magnitude, -magnitude if signed else magnitude])
    matrix = MAPS[name if name in MAPS else 'Identity'](magnitude.astype(np.float64), height, width)
    rows.append((np.full(len(magnitude), KINDS[name], np.int32), magnitude, geometry.to_fixed_point(matrix)))
  return Table(*(jnp.asarray(np.concatenate(column)) for column in zip(*rows, strict=True)))


def apply(images: jax.Array, rows: Table, fill: int = 0) -> jax.Array:
  """Return uint8 ``[B, H, W, C]``, each image after the operation of its row of a table.

  Every kind of outcome is made of every image and written side by side, then one is picked: in one loop with the
  look-ups, XLA:CPU would not vectorise the arithmetic (24 instead of 56 microseconds an image of 32x32).
  """
  change = lambda image, row: jax.lax.switch(row.kind - 2, list(CHANGES.values()), image, row.magnitude)
  moved = jax.vmap(geometry.affine, (0, 0, None))(images, rows.matrix, fill)
  outcomes = jnp.stack([moved, jax.vmap(pixels.equalize)(images), jax.vmap(change)(images, rows)], axis=1)
  return jax.vmap(lambda outcome, kind: outcome[kind])(outcomes, jnp.minimum(rows.kind, 2))


def make(policy: str, layers: int, magnitude: int, fill: int) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
  """Return ``(rng, images) -> images`` of a policy; None for ``'none'``.

  Args:
    policy: ``'none'``, ``'randaugment'`` or ``'trivialaugment'``.
    layers: operations an image, of RandAugment.
    magnitude: of RandAugment, ``[0, BINS)``; TrivialAugment draws it.
    fill: level of pixels that were moved in.
  """
  spaces = {
    'randaugment': (randaugment, layers, np.array([magnitude])),
    'trivialaugment': (trivialaugment, 1, np.arange(BINS)),
  }
  check_word('augment.policy', policy, ['none', *spaces])
  if policy == 'none':
    return None
  space, times, bins = spaces[policy]

  def transform(rng: jax.Array, images: jax.Array) -> jax.Array:
    count, height, width, _ = images.shape
    table = make_table(space(height, width), bins, height, width)
    for draws in jax.random.randint(rng, (times, count), 0, len(table.kind)):
      images = apply(images, Table(*(column[draws] for column in table)), fill)
    return images

  return transform


def _maps(magnitude: np.ndarray, *rows: tuple[float | np.ndarray, ...]) -> np.ndarray:
  """Return two rows of three coefficients as float64 ``[N, 6]``, one a magnitude."""
  return np.stack([np.broadcast_to(np.asarray(c, np.float64), magnitude.shape) for row in rows for c in row], axis=-1)
