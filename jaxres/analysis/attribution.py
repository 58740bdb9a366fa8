"""What in an image a network's answer rests on: pure functions of a model, its variables, images and classes.

Each of ``METHODS`` maps normalized images, float32 ``[B, H, W, C]``, and classes, int32 ``[B]``, to float32
``[B, H, W]``: how much each pixel counts for the class, in the method's units. All are jitted and treat each image
alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxres.models import ResNet
from jaxres.models.resnet import ACTIVATIONS
from jaxres.runtime.compiler import jit

Activation = Callable[[jax.Array], jax.Array]
TOLERANCE = 0.005  # of integrated gradients: how far their sum may be from the difference of the scores, relatively
MAX_GRADIENTS = 1024  # an image, of them
MARGIN = 0.95  # of the tolerance: the sum is added up in another order when it is judged
FIRST_PARTS, POINTS = 16, 32  # of the way: at first; places looked at in one call
_jit = functools.partial(jit, static_argnums=0)


def score(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return the logit of each image's class, float32 ``[B]``.

  Args:
    model: the network.
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: whose logit is taken, int32 ``[B]``.
  """
  logits: Any = model.apply(variables, images, train=False)
  return _select_class(logits, classes)


def _select_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]


@_jit
def gradient(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return the gradient of ``score`` by the images, float32 ``[B, H, W, C]``.

  Args:
    model: the network.
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: whose score is differentiated, int32 ``[B]``.
  """
  return jax.grad(lambda x: score(model, variables, x, classes).sum())(images)


@_jit
def saliency(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return the largest absolute gradient over the channels (Simonyan et al. 2013, https://arxiv.org/abs/1312.6034).

  Args:
    model: the network.
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: to explain, int32 ``[B]``.

  Returns:
    float32 ``[B, H, W]``, not negative.
  """
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
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: to explain, int32 ``[B]``.
    samples: copies.
    noise: their standard deviation, as a share of the range of the image.
    seed: of the noise.

  Returns:
    float32 ``[B, H, W]``, not negative.
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
  tolerance: float = TOLERANCE,
  max_gradients: int = MAX_GRADIENTS,
  tell: Callable[[int], None] | None = None,
) -> jax.Array:
  """Return the gradients along the way from the mean color, integrated (Sundararajan et al. 2017, arXiv 1703.01365).

  The maps sum to the difference of the scores of image and mean color: see ``incompleteness``. The score of a network
  of ReLUs is piecewise linear along the way, so that where it bends is found by the midpoint rule's error in each part
  of the way, which is known: the parts with the largest are halved, until the sum is off by no more than ``tolerance``.

  Args:
    model: the network.
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: to explain, int32 ``[B]``.
    tolerance: relative error of the sum that is good enough.
    max_gradients: where it takes more of them than this for an image, its map is the one computed so far.
    tell: called with how many images are done, after each.

  Returns:
    float32 ``[B, H, W]``; a pixel's share of the score, in logits.
  """
  maps = []
  for i in range(len(images)):
    maps.append(_integrate_gradients(model, variables, images[i], classes[i], tolerance, max_gradients))
    if tell:
      tell(i + 1)
  return jnp.asarray(np.stack(maps))


def _integrate_gradients(
  model: ResNet, variables: Any, image: jax.Array, class_id: jax.Array, tolerance: float, max_gradients: int
) -> np.ndarray:
  """Return the map of one image, float32 ``[H, W]``.

  A loop in one program would be many times slower on a CPU, so each call takes some points of the way.
  """

  def evaluate(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for start in range(0, len(place), POINTS):
      here = place[start : start + POINTS].astype(np.float32)
      outputs = jax.device_get(
        _path_gradients(model, variables, image, class_id, np.pad(here, (0, POINTS - len(here)), mode='edge'))
      )
      parts.append([np.asarray(array)[: len(here)] for array in outputs])
    scores, maps = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return scores.astype(np.float64), maps

  edges = np.linspace(0, 1, FIRST_PARTS + 1)
  scores, maps = evaluate(np.concatenate([edges, (edges[:-1] + edges[1:]) / 2]))
  ends, middle = scores[: len(edges)], slice(len(edges), None)
  segments = _Segments(edges[:-1], edges[1:], ends[:-1], ends[1:], scores[middle], maps[middle])
  gradients, gap = len(scores), max(abs(ends[-1] - ends[0]), 1e-6)
  while abs(segments.errors().sum()) > MARGIN * tolerance * gap and gradients + POINTS <= max_gradients:
    calls = min(max(POINTS, len(segments.start) // 2), max_gradients - gradients) // POINTS
    segments = _halve(segments, np.argsort(-np.abs(segments.errors()), kind='stable')[: calls * POINTS // 2], evaluate)
    gradients += calls * POINTS
  return np.einsum('n,nhw->hw', segments.end - segments.start, segments.maps).astype(np.float32)


class _Segments(NamedTuple):
  """The way from the mean color to an image in N parts: the scores at their ends and, with the map, in the middle."""

  start: np.ndarray  # float64 [N], 0 to 1
  end: np.ndarray  # float64 [N]
  start_score: np.ndarray  # float64 [N]
  end_score: np.ndarray  # float64 [N]
  middle_score: np.ndarray  # float64 [N]
  maps: np.ndarray  # float32 [N, H, W]: gradient times image, in the middle

  def errors(self) -> np.ndarray:
    """Return by how much the midpoint rule misses the difference of the scores in each part, float64 ``[N]``."""
    slope = self.maps.sum((1, 2), dtype=np.float64)
    return slope * (self.end - self.start) - (self.end_score - self.start_score)


def _halve(
  segments: _Segments, chosen: np.ndarray, evaluate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> _Segments:
  """Return ``segments`` with the ``chosen`` parts halved; ``evaluate`` gives the scores and the maps at places."""
  old = _Segments(*(array[chosen] for array in segments))
  middle = (old.start + old.end) / 2
  start, end = np.concatenate([old.start, middle]), np.concatenate([middle, old.end])
  scores = np.concatenate([old.start_score, old.middle_score]), np.concatenate([old.middle_score, old.end_score])
  new = _Segments(start, end, *scores, *evaluate((start + end) / 2))
  rest = _Segments(*(np.delete(array, chosen, axis=0) for array in segments))
  return _Segments(*(np.concatenate(pair) for pair in zip(rest, new, strict=True)))


@_jit
def _path_gradients(
  model: ResNet, variables: Any, image: jax.Array, class_id: jax.Array, place: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Return the scores at places of the way to an image, and there the gradient times the image: ``[N], [N, H, W]``."""
  points = image * place[:, None, None, None]

  def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    scores = score(model, variables, x, jnp.full(len(place), class_id))
    return scores.sum(), scores

  gradients, scores = jax.grad(total, has_aux=True)(points)
  return scores, (gradients * image).sum(-1)


@_jit
def incompleteness(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array, maps: jax.Array) -> jax.Array:
  """Return the relative error of the sum of ``integrated_gradients``, float32 ``[B]``.

  Args:
    model: the network.
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: int32 ``[B]``.
    maps: of ``integrated_gradients``, float32 ``[B, H, W]``.
  """
  gap = score(model, variables, images, classes) - score(model, variables, jnp.zeros_like(images), classes)
  return _relative_error(maps, gap)


def _relative_error(maps: jax.Array, gap: jax.Array) -> jax.Array:
  return jnp.abs(maps.sum((1, 2)) - gap) / jnp.maximum(jnp.abs(gap), 1e-6)


@_jit
def grad_cam(model: ResNet, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
  """Return the last stage's channels, weighted by their mean gradients (Selvaraju et al. 2016, arXiv 1610.02391).

  Args:
    model: the network.
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: to explain, int32 ``[B]``.

  Returns:
    float32 ``[B, H, W]``, not negative.
  """
  last = f'stage{len(model.stage_sizes)}'
  stages: Any = model.apply(variables, images, train=False, method='features')

  def score_of(features: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, {last: features}, method='head')
    return _select_class(logits, classes).sum()

  weights = jax.grad(score_of)(stages[last]).mean((1, 2), keepdims=True)
  maps = jax.nn.relu((weights * stages[last]).sum(-1))
  return jax.image.resize(maps.astype(jnp.float32), images.shape[:3], 'bilinear')


@functools.cache
def guide_activation(act: Activation) -> Activation:
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
  """Return ``grad_cam`` times the ``saliency`` of the network with ``guide_activation`` activations.

  Args:
    model: the network.
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: to explain, int32 ``[B]``.

  Returns:
    float32 ``[B, H, W]``, not negative.
  """
  act = ACTIVATIONS[model.act] if isinstance(model.act, str) else model.act
  maps = saliency(model.clone(act=guide_activation(act)), variables, images, classes)
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
  """Return how much of the score is lost where a patch has the mean color (Zeiler and Fergus 2013, arXiv 1311.2901).

  Args:
    model: the network.
    variables: of the network.
    images: normalized, float32 ``[B, H, W, C]``.
    classes: to explain, int32 ``[B]``.
    patch: side in pixels; a quarter of the image where it is None.
    stride: pixels from patch to patch; half a patch where it is None.

  Returns:
    float32 ``[B, H, W]``: the mean loss of score of the patches that cover each pixel, in logits.
  """
  height, width = images.shape[1:3]
  patch = patch or max(1, min(height, width) // 4)
  stride = stride or max(1, patch // 2)
  tops, lefts = ([*range(0, size - patch, stride), size - patch] for size in (height, width))
  corners = jnp.array([(top, left) for top in tops for left in lefts])
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
  full_score = score(model, variables, images, classes)

  def hide(total: jax.Array, corner: jax.Array) -> tuple[jax.Array, jax.Array]:
    top, left = corner
    inside = (rows >= top) & (rows < top + patch) & (columns >= left) & (columns < left + patch)
    lost = full_score - score(model, variables, jnp.where(inside[..., None], 0.0, images), classes)
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
