"""What in an image a network's answer rests on: pure functions of a model, its variables, images and classes.

Each of ``METHODS`` maps normalised images, float32 ``[B, H, W, C]``, and classes, int32 ``[B]``, to float32
``[B, H, W]``: how much each pixel speaks for the class, in units of its own. They are jitted; each image is seen alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxres.backend import jit
from jaxres.models import ResNet
from jaxres.models.resnet import ACTIVATIONS

Activation = Callable[[jax.Array], jax.Array]

FIRST_STEPS = 32  # of integrated gradients

_jit = functools.partial(jit, static_argnums=0)


def score(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return the logit of each image's class, float32 ``[B]``."""
  logits: Any = model.apply(variables, images, train=False)
  return _of_class(logits, classes)


def _of_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]


@_jit
def gradient(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return the gradient of ``score`` by the images, float32 ``[B, H, W, C]``."""
  return jax.grad(lambda x: score(model, variables, x, classes).sum())(images)


@_jit
def saliency(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return the largest absolute gradient over the channels (Simonyan et al. 2013, https://arxiv.org/abs/1312.6034)."""
  return jnp.abs(gradient(model, variables, images, classes)).max(-1)


@functools.partial(_jit, static_argnames='samples')
def smooth_grad(
  model: ResNet,
  variables: Any,
  images: jax.Array,
  classes: jax.Array,
  samples: int = 32,
  noise: float = 0.15,
  seed: int = 0,
) -> jax.Array:
  """Return ``saliency`` of the mean gradient of noisy copies (Smilkov et al. 2017, https://arxiv.org/abs/1706.03825).

  Args:
    model: the network.
    variables: of it.
    images: see above.
    classes: see above.
    samples: copies.
    noise: their standard deviation, as a share of the range of the image.
    seed: of the noise.
  """
  axes = (1, 2, 3)
  deviation = noise * (images.max(axes, keepdims=True) - images.min(axes, keepdims=True))

  def add(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
    noisy = images + deviation * jax.random.normal(key, images.shape)
    return total + gradient(model, variables, noisy, classes), None

  total, _ = jax.lax.scan(add, jnp.zeros_like(images), jax.random.split(jax.random.key(seed), samples))
  return jnp.abs(total / samples).max(-1)


def integrated_gradients(
  model: ResNet,
  variables: Any,
  images: jax.Array,
  classes: jax.Array,
  tolerance: float = 0.005,
  most_steps: int = 4096,
) -> jax.Array:
  """Return the gradients along the way from the mean colour, integrated (Sundararajan et al. 2017, arXiv 1703.01365).

  The maps sum to the difference of the scores of image and mean colour. The steps are doubled, from 32 to at most
  ``most_steps``, for each image until they do so with a relative error below ``tolerance``: see ``incompleteness``.
  """
  steps, missed = FIRST_STEPS, np.arange(len(images))
  maps = jnp.zeros(images.shape[:3], jnp.float32)
  while len(missed) and steps <= most_steps:
    maps = maps.at[missed].set(_integrated(model, variables, images, classes, missed, steps)[missed])
    missed = np.flatnonzero(np.asarray(incompleteness(model, variables, images, classes, maps)) > tolerance)
    steps *= 2
  return maps


def _integrated(
  model: ResNet, variables: Any, images: jax.Array, classes: jax.Array, chosen: np.ndarray, steps: int
) -> jax.Array:
  """Return the maps of the ``chosen`` images by so many steps; those of the others are zero.

  A loop in one program would be many times slower on a CPU, so each call takes as many points as there are images.
  """
  which = np.repeat(chosen, steps).astype(np.int32)
  place = np.tile((np.arange(steps, dtype=np.float32) + 0.5) / steps, len(chosen))
  size = max(len(images), FIRST_STEPS)
  total = jnp.zeros_like(images)
  for begin in range(0, len(which), size):
    here = slice(begin, begin + size)
    missing = size - len(which[here])
    points = np.pad(which[here], (0, missing), constant_values=-1), np.pad(place[here], (0, missing))
    total += _gradients_at(model, variables, images, classes, *points)
  return (images * total / steps).sum(-1)


@_jit
def _gradients_at(
  model: ResNet, variables: Any, images: jax.Array, classes: jax.Array, which: jax.Array, place: jax.Array
) -> jax.Array:
  """Return the sum over points of the gradients there, by image; -1 as the image of a point is none."""
  points = images[which] * place[:, None, None, None]
  return jax.ops.segment_sum(gradient(model, variables, points, classes[which]), which, len(images))


@_jit
def incompleteness(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array, maps: jax.Array) -> jax.Array:
  """Return the relative error of the sum of ``integrated_gradients``, float32 ``[B]``."""
  gap = score(model, variables, images, classes) - score(model, variables, jnp.zeros_like(images), classes)
  return _relative_error(maps, gap)


def _relative_error(maps: jax.Array, gap: jax.Array) -> jax.Array:
  return jnp.abs(maps.sum((1, 2)) - gap) / jnp.maximum(jnp.abs(gap), 1e-6)


@_jit
def grad_cam(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return the last stage's channels, weighted by their mean gradients (Selvaraju et al. 2016, arXiv 1610.02391)."""
  last = f'stage{len(model.stage_sizes)}'
  stages: Any = model.apply(variables, images, train=False, method='features')

  def score_of(features: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, {last: features}, method='head')
    return _of_class(logits, classes).sum()

  weights = jax.grad(score_of)(stages[last]).mean((1, 2), keepdims=True)
  maps = jax.nn.relu((weights * stages[last]).sum(-1))
  return jax.image.resize(maps.astype(jnp.float32), images.shape[:3], 'bilinear')


@functools.cache
def guided(act: Activation) -> Activation:
  """Return ``act`` with a gradient that lets through what is positive (Springenberg et al. 2014, arXiv 1412.6806)."""

  @jax.custom_vjp
  def run(x: jax.Array) -> jax.Array:
    return act(x)

  def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return jax.vjp(act, x)[1](jax.nn.relu(g))

  run.defvjp(lambda x: (act(x), x), backward)
  return run


@_jit
def guided_grad_cam(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return ``grad_cam`` times the ``saliency`` of the network with ``guided`` activations."""
  act = ACTIVATIONS[model.act] if isinstance(model.act, str) else model.act
  maps = saliency(model.clone(act=guided(act)), variables, images, classes)
  return maps * grad_cam(model, variables, images, classes)


@functools.partial(_jit, static_argnames=('patch', 'stride'))
def occlusion(
  model: ResNet,
  variables: Any,
  images: jax.Array,
  classes: jax.Array,
  patch: int | None = None,
  stride: int | None = None,
) -> jax.Array:
  """Return how much of the score is lost where a patch has the mean colour (Zeiler and Fergus 2013, arXiv 1311.2901).

  Args:
    model: the network.
    variables: of it.
    images: see above.
    classes: see above.
    patch: side in pixels; a quarter of the image where it is None.
    stride: pixels from patch to patch; half a patch where it is None.

  Returns:
    The mean loss of the patches that cover each pixel.
  """
  height, width = images.shape[1:3]
  patch = patch or max(1, min(height, width) // 4)
  stride = stride or max(1, patch // 2)
  tops, lefts = ([*range(0, size - patch, stride), size - patch] for size in (height, width))
  corners = jnp.array([(top, left) for top in tops for left in lefts])
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
  whole = score(model, variables, images, classes)

  def hide(total: jax.Array, corner: jax.Array) -> tuple[jax.Array, jax.Array]:
    top, left = corner
    inside = (rows >= top) & (rows < top + patch) & (columns >= left) & (columns < left + patch)
    lost = whole - score(model, variables, jnp.where(inside[..., None], 0.0, images), classes)
    return total + lost[:, None, None] * inside, inside

  total, covered = jax.lax.scan(hide, jnp.zeros(images.shape[:3]), corners)
  return total / covered.sum(0)


METHODS: dict[str, Callable[[ResNet, Any, jax.Array, jax.Array], jax.Array]] = {
  'saliency': saliency,
  'smoothgrad': smooth_grad,
  'integrated': integrated_gradients,
  'gradcam': grad_cam,
  'guided_gradcam': guided_grad_cam,
  'occlusion': occlusion,
}
