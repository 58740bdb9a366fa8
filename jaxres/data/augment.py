"""Augmentation on the device: uint8 images to normalised floats, random per example, inside the jitted step."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxres.errors import InputError

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def make(*, crop_pad: int = 0, pad_mode: Literal['reflect', 'constant'] = 'constant', flip: bool = False) -> Augment:
  """Return the augmentation of training images, a function of ``(rng, images)``.

  Args:
    crop_pad: pixels to pad on every side before a random crop back to the size; 0 does not crop.
    pad_mode: pad with black (``'constant'``, as torchvision's ``RandomCrop``) or with the mirrored image.
    flip: mirror left-right with probability one half.

  Returns:
    A function of a key and uint8 ``[B, H, W, C]`` that returns uint8 ``[B, H, W, C]``.

  Raises:
    InputError: ``crop_pad`` is negative.
  """
  if crop_pad < 0:
    raise InputError(f'augment.crop_pad: expected pixels, 0 or more, found {crop_pad}')

  def augment(rng: jax.Array, images: jax.Array) -> jax.Array:
    crop_rng, flip_rng = jax.random.split(rng)
    if crop_pad:
      images = pad_crop(images, crop_offsets(crop_rng, images.shape[0], crop_pad), crop_pad, pad_mode)
    if flip:
      images = flip_left_right(images, jax.random.bernoulli(flip_rng, shape=images.shape[:1]))
    return images

  return augment


def crop_offsets(rng: jax.Array, size: int, pad: int) -> jax.Array:
  """Return uniform offsets of the crop in the padded image, int32 ``[size, 2]`` (down, right), in ``[0, 2 * pad]``."""
  return jax.random.randint(rng, (size, 2), 0, 2 * pad + 1)


def pad_crop(images: jax.Array, offsets: jax.Array, pad: int, mode: str) -> jax.Array:
  """Pad every side by ``pad`` pixels, then cut the original size out at ``offsets``.

  Args:
    images: ``[B, H, W, C]``, any dtype.
    offsets: int32 ``[B, 2]``: rows and columns to skip of each padded image, in ``[0, 2 * pad]``.
    pad: pixels; less than H and W where ``mode`` is ``'reflect'``.
    mode: ``'constant'`` (zeros) or ``'reflect'``, as ``numpy.pad`` has them.

  Returns:
    ``[B, H, W, C]`` of the same dtype.
  """
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
  cut = lambda image, offset: jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])
  return jax.vmap(cut)(padded, offsets)


def flip_left_right(images: jax.Array, flip: jax.Array) -> jax.Array:
  """Mirror ``images[i]``, ``[H, W, C]``, where ``flip[i]`` is true."""
  return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """Return ``(images / 255 - mean) / std`` as float32 ``[B, H, W, C]``.

  Args:
    images: uint8 ``[B, H, W, C]``.
    mean: of each channel, on the scale 0..1.
    std: of each channel, on the scale 0..1.
  """
  scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
  shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
  return images.astype(jnp.float32) * scale - shift
