"""Operations that move, resize or cut out pixels.

Where Pillow computes coordinates or weights in double precision, NumPy does so here, once, on the host: the device only
looks them up, and gives Pillow's very bits.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxres.data.types import Image, Images

ANGLES = 1024  # that a random rotation chooses from, evenly spaced
TRIES = 10  # to draw a box that fits, as torchvision
CROP_RATIO = (3 / 4, 4 / 3)  # width to height, torchvision's RandomResizedCrop
ERASE_SCALE, ERASE_RATIO = (
  (0.02, 0.33),
  (1 / 3.3, 1 / 0.3),
)  # torchvision's RandomErasing, whose ratio is height to width
WEIGHT_BITS = 22  # of Pillow's fixed-point resampling weights


def affine(image: Image, matrix: Int[Array, '6'], fill: Int[Array, ''] | int = 0) -> Image:
  """Return the pixel nearest to each mapped position (Pillow's ``transform`` with AFFINE, NEAREST).

  Args:
    image: uint8 ``[H, W, C]``.
    matrix: int32 ``[6]`` of ``to_fixed_point``.
    fill: level of positions outside the image.
  """
  height, width, channels = image.shape
  y, x = jnp.arange(height)[:, None], jnp.arange(width)[None]
  from_x = matrix[0] * x + matrix[1] * y + matrix[2] >> 16
  from_y = matrix[3] * x + matrix[4] * y + matrix[5] >> 16
  inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
  sampled = jnp.take(image.reshape(height * width, channels), from_y * width + from_x, axis=0, mode='clip')
  return jnp.where(inside[..., None], sampled, jnp.uint8(fill))


def to_fixed_point(coefficients: Float[np.ndarray, '*N 6']) -> Int[np.ndarray, '*N 6']:
  """Return Pillow's 16.16 fixed-point form of affine maps, from the middle of output pixel (0, 0).

  Args:
    coefficients: float64 ``[..., 6]``, (a, b, c, d, e, f): output (x, y) shows input (a x + b y + c, d x + e y + f).

  Returns:
    int32 ``[..., 6]``.
  """
  a, b, c, d, e, f = np.moveaxis(np.asarray(coefficients, np.float64), -1, 0)
  matrix = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], axis=-1)
  return np.floor(matrix * 65536 + 0.5).astype(np.int32)


def rotation(degrees: np.ndarray, height: int, width: int) -> np.ndarray:
  """Return the coefficients of turns about the middle, anticlockwise, float64 ``[..., 6]`` (Pillow's ``rotate``)."""
  angle = -np.radians(np.asarray(degrees, np.float64))
  cos, sin = np.cos(angle).round(15), np.sin(angle).round(15)
  x, y = width / 2, height / 2
  return np.stack([cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y], axis=-1)


def crop_and_resize(image: Image, box: Int[Array, '4']) -> Image:
  """Cut ``box`` out and resize it to the size of the image (Pillow's ``crop``, then ``resize`` with BILINEAR).

  Args:
    image: uint8 ``[H, W, C]``.
    box: int32 ``[4]``: top, left, height, width, inside the image.
  """
  top, left, height, width = box
  return _resize(_resize(image, 1, left, width), 0, top, height)


def _resize(image: jax.Array, axis: int, start: jax.Array, size: jax.Array) -> jax.Array:
  """Stretch ``[start, start + size)`` to the full ``axis``: two pixels each, weighted in fixed point, rounded."""
  length = image.shape[axis]
  share = np.arange(2 * length) / (2 * length)
  weights = jnp.asarray(np.floor(np.stack([1 - share, share]) * 2**WEIGHT_BITS + 0.5).astype(np.int32))
  middle = (2 * jnp.arange(length) + 1) * size - length  # of the input pixel, in units of 1 / (2 * length)
  shape = [-1 if a == axis else 1 for a in range(3)]
  total = jnp.int32(1 << (WEIGHT_BITS - 1))
  for tap in (0, 1):
    index = start + jnp.clip(middle // (2 * length) + tap, 0, size - 1)
    weight = weights[tap][middle % (2 * length)].reshape(shape)
    total += jnp.take(image, index, axis=axis, mode='clip').astype(jnp.int32) * weight
  return (total >> WEIGHT_BITS).astype(jnp.uint8)


def box_mask(box: Int[Array, '4'], height: int, width: int) -> Bool[Array, 'H W 1']:
  """Return what lies in ``box`` (top, left, height, width), which may reach over the border, bool ``[H, W, 1]``."""
  y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
  top, left, rows, columns = box
  return (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)


def cut_out(image: Image, box: Int[Array, '4'], fill: Int[Array, ''] | int = 0) -> Image:
  """Fill ``box``, int32 ``[4]`` (top, left, height, width), of uint8 ``[H, W, C]``; it may reach over the border."""
  return jnp.where(box_mask(box, *image.shape[:2]), jnp.uint8(fill), image)


def draw_boxes(
  rng: PRNGKeyArray, count: int, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[Int[Array, 'count 2'], Bool[Array, ' count']]:
  """Draw boxes with a uniform area, a log-uniform ratio and then a uniform place, as torchvision does.

  Args:
    rng: key.
    count: how many.
    height: the most rows of a box.
    width: the most columns.
    scale: least and greatest area, in pixels.
    ratio: least and greatest width to height.

  Returns:
    int32 ``[count, 2]``, rows and columns of the first of ten tries that fits, and bool ``[count]``: whether one did.
  """
  area_rng, ratio_rng = jax.random.split(rng)
  area = jax.random.uniform(area_rng, (count, TRIES), minval=scale[0], maxval=scale[1])
  log_ratio = jax.random.uniform(ratio_rng, (count, TRIES), minval=math.log(ratio[0]), maxval=math.log(ratio[1]))
  columns = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio))).astype(jnp.int32)
  rows = jnp.round(jnp.sqrt(area / jnp.exp(log_ratio))).astype(jnp.int32)
  fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
  sizes = jnp.stack([rows, columns], axis=-1)
  first = jnp.take_along_axis(sizes, fits.argmax(1)[:, None, None], axis=1)[:, 0]
  return first, fits.any(1)


def place(rng: PRNGKeyArray, sizes: Int[Array, 'B 2'], height: int, width: int) -> Int[Array, 'B 4']:
  """Return boxes of ``sizes``, int32 ``[B, 2]``, anywhere in the image: int32 ``[B, 4]`` (top, left, height, width)."""
  corners = jax.random.randint(rng, sizes.shape, 0, jnp.array([[height, width]]) - sizes + 1)
  return jnp.concatenate([corners, sizes], axis=1)


def random_resized_crop(rng: PRNGKeyArray, images: Images, *, scale: Sequence[float]) -> Images:
  """Resize a random box of each image, uint8 ``[B, H, W, C]``, to the full size (torchvision's ``RandomResizedCrop``).

  Where ten tries give no box, the largest in the middle that has an allowed ratio is taken.
  """
  count, height, width, _ = images.shape
  size_rng, place_rng = jax.random.split(rng)
  areas = [share * height * width for share in scale]
  sizes, fits = draw_boxes(size_rng, count, height, width, areas, CROP_RATIO)
  rows, columns = min(height, round(width / CROP_RATIO[0])), min(width, round(height * CROP_RATIO[1]))
  middle = jnp.array([(height - rows) // 2, (width - columns) // 2, rows, columns])
  boxes = jnp.where(fits[:, None], place(place_rng, sizes, height, width), middle[None])
  return jax.vmap(crop_and_resize)(images, boxes)


def random_rotation(rng: PRNGKeyArray, images: Images, *, degrees: float, fill: int) -> Images:
  """Turn each image, uint8 ``[B, H, W, C]``, by one of 1,024 angles between minus and plus ``degrees``."""
  count, height, width, _ = images.shape
  angles = to_fixed_point(rotation(np.linspace(-degrees, degrees, ANGLES), height, width))
  matrices = jnp.asarray(angles)[jax.random.randint(rng, (count,), 0, ANGLES)]
  return jax.vmap(affine, (0, 0, None))(images, matrices, fill)


def random_erase(rng: PRNGKeyArray, images: Images, *, probability: float, fill: int) -> Images:
  """Fill a random box of each image, uint8 ``[B, H, W, C]``, with ``probability`` (torchvision's ``RandomErasing``)."""
  count, height, width, _ = images.shape
  size_rng, place_rng, draw_rng = jax.random.split(rng, 3)
  areas = [share * height * width for share in ERASE_SCALE]
  sizes, fits = draw_boxes(size_rng, count, height - 1, width - 1, areas, ERASE_RATIO)
  drawn = fits & jax.random.bernoulli(draw_rng, probability, (count,))
  boxes = place(place_rng, jnp.where(drawn[:, None], sizes, 0), height, width)
  return jax.vmap(cut_out, (0, 0, None))(images, boxes, fill)


def random_cutout(rng: PRNGKeyArray, images: Images, *, side: int, fill: int) -> Images:
  """Fill a square of each image, uint8 ``[B, H, W, C]``; its center is any pixel, it may reach over the border."""
  count, height, width, _ = images.shape
  ends = jnp.broadcast_to(jnp.array([height, width]), (count, 2))
  corners = jax.random.randint(rng, ends.shape, 0, ends) - side // 2
  boxes = jnp.concatenate([corners, jnp.full_like(corners, side)], axis=1)
  return jax.vmap(cut_out, (0, 0, None))(images, boxes, fill)
