"""Augmentation on the device: uint8 images, random per example, inside the jitted step; then normalized floats.

Each random step here is a function ``(rng, images) -> images`` of a batch, in which every example has its own draw. It
draws parameters and hands them to a pure function of one image: those of ``pixels`` and ``geometry``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

from jaxres import config as config_lib
from jaxres.data.augment import geometry, mixing, pixels, policies
from jaxres.data.types import Labels
from jaxres.errors import InputError, check_range

Batch = dict[str, jax.Array]
Transform = Callable[[jax.Array, jax.Array], jax.Array]
VIEW_KEYS = 1000  # the number of the key of the first of several views


class Augment(NamedTuple):
  """What a training batch goes through: ``images`` each image alone, then ``mix``, where it is not None, the batch."""

  images: Transform  # (rng, uint8 [B, H, W, C]) to the same, or to V views of each, uint8 [V, B, H, W, C]
  mix: mixing.Mix | None  # (rng, uint8 [B, H, W, C], float32 [B, ...]) to the same
  moves: bool = True  # whether pixels move, with which labels that are maps of them would have to

  def __call__(self, rng: jax.Array, images: jax.Array) -> jax.Array:
    """Return ``images``, uint8 ``[B, H, W, C]``, augmented but not mixed; several views of each come stacked."""
    return self.images(rng, images)

  def batch(self, rng: jax.Array, batch: Batch, labels: Labels, num_names: int) -> Batch:
    """Return a batch as a step learns it.

    Args:
      rng: the key of the step.
      batch: ``image`` uint8 ``[B, H, W, C]``, ``label`` ``[B, ...]``; other arrays stay as they are.
      labels: what they are.
      num_names: K, of the classes, or of the numbers in a label.

    Returns:
      The batch with ``image`` uint8 ``[B, H, W, C]``, and where images are mixed ``label`` as ``labels.soften`` makes
      it, such as float32 ``[B, K]``. Of V views ``image`` is ``[V, B, H, W, C]``, and ``label`` is ``[V, B, ...]``
      where they are mixed: each alone, with its own draws.
    """
    images, label = self(rng, batch['image']), batch['label']
    if self.mix and labels.soften:
      mix, label = self.mix, labels.soften(label, num_names)
      if images.ndim == batch['image'].ndim:
        images, label = mix(rng, images, label)
      else:
        images, label = jax.vmap(mix, (0, 0, None))(view_keys(rng, len(images)), images, label)
    return {**batch, 'image': images, 'label': label}


def make(
  *,
  crop_pad: int = 0,
  pad_mode: Literal['reflect', 'constant'] = 'constant',
  flip: bool = False,
  resized_crop: tuple[float | int, ...] = (),
  rotate: float = 0.0,
  jitter: tuple[float | int, ...] = (),
  policy: Literal['none', 'randaugment', 'trivialaugment'] = 'none',
  randaugment_layers: int = 2,
  randaugment_magnitude: int = 9,
  erase: float = 0.0,
  cutout: int = 0,
  fill: int = 0,
  mixup: float = 0.0,
  cutmix: float = 0.0,
) -> Augment:
  """Return the augmentation of training batches; its steps are done in the order of the arguments.

  A step's draws do not depend on which other steps are there.

  Args:
    crop_pad: pixels to pad on every side before a random crop back to the size; 0 does not crop.
    pad_mode: pad with black (``'constant'``, as torchvision's ``RandomCrop``) or with the mirrored image.
    flip: mirror left-right with probability one half.
    resized_crop: least and greatest share of the area, such as (0.08, 1.0), of a random box that is resized to the
      image; the box's width is 3/4 to 4/3 of its height (Szegedy et al. 2014, arXiv 1409.4842; torchvision's
      ``RandomResizedCrop``, bilinear). Empty does not crop.
    rotate: degrees: turn by an angle between minus and plus this, nearest neighbor.
    jitter: how much brightness, contrast, saturation and hue change, such as (0.4, 0.4, 0.4, 0.1), as torchvision's
      ``ColorJitter`` but always in this order. Empty changes nothing.
    policy: ``'randaugment'`` (Cubuk et al. 2019, arXiv 1909.13719) or ``'trivialaugment'``, the wide one (Müller and
      Hutter 2021, arXiv 2103.10158), with torchvision's operations and magnitudes.
    randaugment_layers: how many operations an image goes through.
    randaugment_magnitude: how strong they are, 0 to 30.
    erase: the probability that a random box is filled (random erasing, Zhong et al. 2017, arXiv 1708.04896; box as in
      torchvision: 2 % to 33 % of the area, width to height 0.3 to 3.3).
    cutout: side in pixels of a filled square, centered anywhere in the image (DeVries and Taylor 2017, arXiv
      1708.04552); 0 has none.
    fill: level, 0 (black) to 255, of pixels that were rotated in or cut out.
    mixup: alpha of Beta(alpha, alpha), the share of an image that is blended with another of the batch (Zhang et al.
      2017, arXiv 1710.09412); 0 does not blend.
    cutmix: alpha of Beta(alpha, alpha), the area of an image around a box that is taken from another of the batch (Yun
      et al. 2019, arXiv 1905.04899); 0 has none. With ``mixup`` too, each image gets one of the two, evenly.

  Returns:
    Pure functions of a key and a batch, the same on any number of devices.

  Raises:
    InputError: a field is out of range.
  """
  config_lib.check_types('augment', locals())
  check_range('augment.crop_pad', crop_pad, low=0, unit='pixels')
  check_range('augment.cutout', cutout, low=0, below=2**31, unit='pixels')
  check_range('augment.fill', fill, low=0, high=255)
  check_range('augment.erase', erase, low=0, high=1)
  check_range('augment.rotate', rotate, low=0, high=180)
  check_range('augment.randaugment_layers', randaugment_layers, low=0, high=16)
  check_range('augment.randaugment_magnitude', randaugment_magnitude, low=0, high=policies.BINS - 1)
  _check_crop(resized_crop)
  _check_jitter(jitter)
  for name, alpha in (('mixup', mixup), ('cutmix', cutmix)):
    check_range(f'augment.{name}', alpha, low=0, high=1000)
  steps: list[Transform | None] = [
    functools.partial(geometry.random_resized_crop, scale=resized_crop) if resized_crop else None,
    functools.partial(geometry.random_rotation, degrees=rotate, fill=fill) if rotate else None,
    functools.partial(pixels.random_jitter, strengths=jitter) if any(jitter) else None,
    policies.make(policy, randaugment_layers, randaugment_magnitude, fill),
    functools.partial(geometry.random_erase, probability=erase, fill=fill) if erase else None,
    functools.partial(geometry.random_cutout, side=cutout, fill=fill) if cutout else None,
  ]

  def augment(rng: jax.Array, images: jax.Array) -> jax.Array:
    crop_rng, flip_rng = jax.random.split(rng)
    if crop_pad:
      check_range('augment.crop_pad', crop_pad, below=min(images.shape[1:3]), unit='pixels')
      images = pad_crop(images, crop_offsets(crop_rng, images.shape[0], crop_pad), crop_pad, pad_mode)
    if flip:
      images = flip_left_right(images, jax.random.bernoulli(flip_rng, shape=images.shape[:1]))
    for number, step in enumerate(steps, 2):  # 0 and 1 are the two halves of the split
      if step:
        images = step(jax.random.fold_in(rng, number), images)
    return images

  moves = bool(crop_pad or flip or resized_crop or rotate or policy != 'none')
  return Augment(augment, mixing.make(mixup, cutmix, key_number=2 + len(steps)), moves)


def with_views(augment: Augment, views: int) -> Augment:
  """Return what makes ``views`` augmentations of each image, ``[V, B, H, W, C]``; of one it is ``augment`` itself.

  Each has its own draws. A stream's random crop is of the host, and the same for all.
  """
  if views == 1:
    return augment
  make_views = lambda rng, images: jnp.stack([augment.images(key, images) for key in view_keys(rng, views)])
  return augment._replace(images=make_views)


def view_keys(rng: jax.Array, views: int) -> jax.Array:
  """Return the keys of ``views`` augmentations of one batch, ``[V]``."""
  return jax.vmap(jax.random.fold_in, (None, 0))(rng, VIEW_KEYS + jnp.arange(views))


def check(augment: Augment, image_shape: tuple[int, int, int], labels: Labels) -> None:
  """Raise InputError where ``augment`` cannot be done to images ``[H, W, C]`` with ``labels``; nothing is compiled."""
  if augment.mix and labels.soften is None:
    raise InputError(
      'augment.mixup', f'the task learns {labels.kind}, which cannot be mixed', fix='leave mixup and cutmix at 0'
    )
  if augment.moves and labels.rank == 2:
    problem = f'the task learns {labels.kind}, and labels do not move with the pixels yet'
    raise InputError('augment', problem, fix='leave crop_pad, flip, resized_crop, rotate and policy out')
  images = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
  jax.eval_shape(augment.images, jax.eval_shape(lambda: jax.random.key(0)), images)


def crop_offsets(rng: PRNGKeyArray, size: int, pad: int) -> Int[Array, 'size 2']:
  """Return uniform offsets of the crop in the padded image, int32 ``[size, 2]`` (down, right), in ``[0, 2 * pad]``."""
  return jax.random.randint(rng, (size, 2), 0, 2 * pad + 1)


def pad_crop(
  images: Shaped[Array, 'B H W C'], offsets: Int[Array, 'B 2'], pad: int, mode: str
) -> Shaped[Array, 'B H W C']:
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


def flip_left_right(images: Shaped[Array, 'B H W C'], flip: Bool[Array, ' B']) -> Shaped[Array, 'B H W C']:
  """Mirror ``images[i]``, ``[H, W, C]``, where ``flip[i]`` is true."""
  return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def normalize(images: UInt8[Array, '*B C'], mean: Sequence[float], std: Sequence[float]) -> Float[Array, '*B C']:
  """Return ``(images / 255 - mean) / std`` as float32 ``[B, H, W, C]``.

  Args:
    images: uint8 ``[B, H, W, C]``.
    mean: of each channel, on the scale 0..1.
    std: of each channel, on the scale 0..1.
  """
  scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
  shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
  scale, shift = (jnp.expand_dims(each, range(images.ndim - 1)) for each in (scale, shift))
  return images.astype(jnp.float32) * scale - shift


def _check_crop(scale: Sequence[float]) -> None:
  if scale and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
    raise InputError('augment.resized_crop', expected='two shares of the area, such as (0.08, 1.0)', found=tuple(scale))


def _check_jitter(strengths: Sequence[float]) -> None:
  if strengths and not (len(strengths) == 4 and min(strengths) >= 0 and strengths[3] <= 0.5):
    expected = 'brightness, contrast, saturation (0 or more) and hue (0 to 0.5)'
    raise InputError('augment.jitter', expected=f'{expected}, such as (0.4, 0.4, 0.4, 0.1)', found=tuple(strengths))
