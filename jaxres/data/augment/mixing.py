"""Mixup and CutMix: each image and its label mixed with those of the one before it in the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxres.data.augment import geometry
from jaxres.data.types import Images

Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def make(mixup_alpha: float, cutmix_alpha: float, key_number: int) -> Mix | None:
  """Return ``(rng, images, labels) -> (images, labels)``, or None where both alphas are 0.

  Args:
    mixup_alpha: of Beta(alpha, alpha); 0 has no mixup.
    cutmix_alpha: of Beta(alpha, alpha); 0 has no CutMix. With both, each image gets one of the two, evenly.
    key_number: folded into the key.

  Returns:
    A function of a key, uint8 ``[B, H, W, C]`` and what the labels are averaged as, such as distributions over the
    classes, float32 ``[B, K]``.
  """
  if not (mixup_alpha or cutmix_alpha):
    return None
  chance = 0.5 if mixup_alpha and cutmix_alpha else float(cutmix_alpha > 0)

  def mix(rng: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    weight_rng, box_rng, draw_rng = jax.random.split(jax.random.fold_in(rng, key_number), 3)
    cut = jax.random.bernoulli(draw_rng, chance, images.shape[:1])
    alpha = jnp.where(cut, cutmix_alpha, mixup_alpha)
    weight = jax.random.beta(weight_rng, alpha, alpha)
    boxes = draw_boxes(box_rng, weight, *images.shape[1:3])
    pasted, pasted_labels = cutmix(images, labels, boxes)
    blended, blended_labels = mixup(images, labels, weight)
    label = jnp.where(_expand(cut, labels), pasted_labels, blended_labels)
    return jnp.where(cut[:, None, None, None], pasted, blended), label

  return mix


def mixup(
  images: Images, labels: Float[Array, 'B ...'], weight: Float[Array, ' B']
) -> tuple[Images, Float[Array, 'B ...']]:
  """Return ``weight`` of each image and label and the rest of the one before it (Zhang et al., arXiv 1710.09412).

  Args:
    images: uint8 ``[B, H, W, C]``.
    labels: float32 ``[B, ...]``.
    weight: float32 ``[B]``, in [0, 1].

  Returns:
    uint8 ``[B, H, W, C]``, rounded to the nearest level, and float32 ``[B, ...]``.
  """
  share = weight[:, None, None, None]
  levels = images.astype(jnp.float32)
  blended = share * levels + (1 - share) * jnp.roll(levels, 1, axis=0)
  return jnp.round(blended).astype(jnp.uint8), _mix_labels(labels, weight)


def cutmix(
  images: Images, labels: Float[Array, 'B ...'], boxes: Int[Array, 'B 4']
) -> tuple[Images, Float[Array, 'B ...']]:
  """Paste a box of the image before into each image; the label is mixed by area (Yun et al., arXiv 1905.04899).

  Args:
    images: uint8 ``[B, H, W, C]``.
    labels: float32 ``[B, ...]``.
    boxes: int32 ``[B, 4]``: top, left, height, width; may reach over the border.

  Returns:
    uint8 ``[B, H, W, C]`` and float32 ``[B, ...]``.
  """
  inside = jax.vmap(geometry.box_mask, (0, None, None))(boxes, *images.shape[1:3])
  pasted = jnp.where(inside, jnp.roll(images, 1, axis=0), images)
  return pasted, _mix_labels(labels, 1 - inside.mean((1, 2, 3)))


def draw_boxes(rng: PRNGKeyArray, weight: Float[Array, ' B'], height: int, width: int) -> Int[Array, 'B 4']:
  """Return boxes of about ``1 - weight`` of the area, centered on any pixel, as torchvision's ``CutMix`` draws them.

  Args:
    rng: key.
    weight: float32 ``[B]``.
    height: of the image.
    width: of the image.

  Returns:
    int32 ``[B, 4]``: top, left, height, width; they may reach over the border.
  """
  size = jnp.array([[height, width]])
  half = (0.5 * jnp.sqrt(1 - weight)[:, None] * size.astype(jnp.float32)).astype(jnp.int32)
  center = jax.random.randint(rng, half.shape, 0, jnp.broadcast_to(size, half.shape))
  return jnp.concatenate([center - half, 2 * half], axis=1)


def _mix_labels(labels: jax.Array, weight: jax.Array) -> jax.Array:
  share = _expand(weight, labels)
  return share * labels + (1 - share) * jnp.roll(labels, 1, axis=0)


def _expand(each: jax.Array, labels: jax.Array) -> jax.Array:
  """Return ``[B]`` with as many axes as ``labels`` has."""
  return each.reshape(-1, *[1] * (labels.ndim - 1))
