"""Operations on the levels of one image, ``(uint8 [H, W, C], parameters) -> uint8 [H, W, C]``, as Pillow does them.

All but ``autocontrast`` and ``hue`` give Pillow's very bits.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from jaxres.data.types import Image, Images
from jaxres.errors import InputError


def invert(image: Image) -> Image:
  """Return the negative (``ImageOps.invert``)."""
  return 255 - image


def solarize(image: Image, threshold: Float[Array, ''] | float) -> Image:
  """Invert the levels at and above ``threshold`` (``ImageOps.solarize``)."""
  return jnp.where(image.astype(jnp.float32) < jnp.asarray(threshold, jnp.float32), image, invert(image))


def posterize(image: Image, bits: Int[Array, ''] | int) -> Image:
  """Keep the ``bits`` highest bits of each level, 1 to 8 (``ImageOps.posterize``)."""
  return image & (0xFF << (8 - jnp.asarray(bits, jnp.int32))).astype(jnp.uint8)


def autocontrast(image: Image) -> Image:
  """Stretch each channel to 0..255 (``ImageOps.autocontrast``); a channel of one level stays.

  The quotient ``(level - low) * 255 / (high - low)`` is rounded down exactly. Pillow rounds it twice as a double, which
  comes out one level lower for some of the quotients that are whole numbers.
  """
  levels = image.astype(jnp.int32)
  low, high = levels.min((0, 1), keepdims=True), levels.max((0, 1), keepdims=True)
  span = jnp.maximum(high - low, 1)
  # Half of a step away from every integer quotient: no rounding of the division can change the result.
  stretched = (((levels - low) * 255).astype(jnp.float32) + 0.5) / span.astype(jnp.float32)
  return jnp.where(high > low, stretched.astype(jnp.uint8), image)


def equalize(image: Image) -> Image:
  """Make the levels of each channel equally frequent (``ImageOps.equalize``); one of few pixels or levels stays."""
  height, width, channels = image.shape
  slot = image.astype(jnp.int32) + 256 * jnp.arange(channels)[None, None]
  counts = jnp.zeros(channels * 256, jnp.int32).at[slot.ravel()].add(1).reshape(channels, 256)
  brightest = jnp.take_along_axis(counts, image.max((0, 1)).astype(jnp.int32)[:, None], axis=1)
  step = (height * width - brightest) // 255
  below = jnp.cumsum(counts, axis=1) - counts
  level = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
  return jnp.where(step > 0, level, jnp.arange(256)[None]).astype(jnp.uint8).ravel()[slot]


def brightness(image: Image, factor: Float[Array, ''] | float) -> Image:
  """Blend with black (``ImageEnhance.Brightness``): 0 is black, 1 the image, more is brighter."""
  return blend(jnp.zeros_like(image), image, factor)


def contrast(image: Image, factor: Float[Array, ''] | float) -> Image:
  """Blend with the mean gray (``ImageEnhance.Contrast``): 0 is gray, 1 the image, more has more contrast."""
  levels = to_gray(image).astype(jnp.int32)
  mean = (2 * levels.sum() + levels.size) // (2 * levels.size)  # rounded half up
  return blend(jnp.full_like(image, mean), image, factor)


def color(image: Image, factor: Float[Array, ''] | float) -> Image:
  """Blend with the gray image (``ImageEnhance.Color``, saturation): 0 is gray, 1 the image, more is more colorful."""
  return blend(jnp.broadcast_to(to_gray(image), image.shape), image, factor)


def sharpness(image: Image, factor: Float[Array, ''] | float) -> Image:
  """Blend with the smoothed image (``ImageEnhance.Sharpness``): 0 is smooth, 1 the image, more is sharper."""
  return blend(smooth(image), image, factor)


def smooth(image: Image) -> Image:
  """Return the mean of 3x3 pixels, the center counted five times; the border stays (``ImageFilter.SMOOTH``)."""
  levels = image.astype(jnp.int32)
  rows = levels[:-2] + levels[1:-1] + levels[2:]
  total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * levels[1:-1, 1:-1]
  return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))  # total / 13, to the nearest


def to_gray(image: Image) -> UInt8[Array, 'H W 1']:
  """Return the luminance of 3 channels, or the one channel, as uint8 ``[H, W, 1]`` (``convert('L')``, ITU-R 601).

  Raises:
    InputError: there are neither 1 nor 3 channels.
  """
  channels = image.shape[-1]
  if channels == 1:
    return image
  if channels != 3:
    raise InputError('augment', 'color operations', expected='images of 1 or 3 channels', found=channels)
  weights = jnp.array([[[19595, 38470, 7471]]], jnp.int32)
  return ((image.astype(jnp.int32) * weights).sum(-1, keepdims=True) + 0x8000 >> 16).astype(jnp.uint8)


def blend(start: Image, end: Image, factor: Float[Array, ''] | float) -> Image:
  """Return ``start + factor * (end - start)`` in float32, clipped and rounded towards zero (``Image.blend``).

  Args:
    start: uint8, the image of factor 0.
    end: uint8, the image of factor 1, of the same shape.
    factor: not limited to 0..1.
  """
  first, distance = start.astype(jnp.float32), end.astype(jnp.float32) - start.astype(jnp.float32)
  # Compilers fuse a * b + c, which rounds once where Pillow rounds twice. The factor's upper and lower half make two
  # exact products, so that their sum is the product, rounded once, fused or not.
  factor = jnp.asarray(factor, jnp.float32)
  upper = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(factor, jnp.int32) & ~0xFFF, jnp.float32)
  product = upper * distance + (factor - upper) * distance
  return jnp.clip(first + product, 0, 255).astype(jnp.uint8)


def hue(image: Image, turn: Float[Array, ''] | float) -> Image:
  """Turn the hue by ``turn`` of the color circle, the HSV value and saturation kept; gray images stay.

  As ``colorsys`` defines HSV, rounded to the nearest level. Pillow's own HSV is in 8 bits and coarser.
  """
  if image.shape[-1] != 3:
    return to_gray(image)
  levels = image.astype(jnp.float32)
  red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
  high, low = levels.max(-1), levels.min(-1)
  chroma = high - low
  span = jnp.maximum(chroma, 1.0)
  sector = jnp.where(
    high == red, (green - blue) / span, jnp.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span)
  )
  position = sector[..., None] + 6.0 * turn + jnp.array([[[5.0, 3.0, 1.0]]])
  position -= 6.0 * jnp.floor(position / 6.0)
  share = jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)
  return jnp.round(high[..., None] - chroma[..., None] * share).astype(jnp.uint8)


def random_jitter(rng: PRNGKeyArray, images: Images, *, strengths: Sequence[float]) -> Images:
  """Change brightness, contrast, saturation and hue of each image, uint8 ``[B, H, W, C]``, in this order.

  Args:
    rng: key.
    images: uint8 ``[B, H, W, C]``.
    strengths: b, c, s and h: the factors of the first three are uniform in ``[max(0, 1 - b), 1 + b]`` and so on, the
      turn of the hue in ``[-h, h]``, as torchvision's ``ColorJitter`` draws them (which shuffles the four).
  """
  neutral = (1.0, 1.0, 1.0, 0.0)
  operations = (brightness, contrast, color, hue)
  for number, (operation, center, strength) in enumerate(zip(operations, neutral, strengths, strict=True)):
    if strength:
      low = max(0.0, center - strength) if center else -strength
      key = jax.random.fold_in(rng, number)
      images = jax.vmap(operation)(
        images, jax.random.uniform(key, images.shape[:1], minval=low, maxval=center + strength)
      )
  return images
