"""The network that is exported: its weights, what is done to an image before it, and what its outputs mean."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxres
from jaxres.data.augment import normalize
from jaxres.models import ResNet
from jaxres.runtime.compiler import jit
from jaxres.weights.preprocessing import Preprocessing

TOLERANCE = 1e-4  # of an exported file's logits, as a share of the largest
CHECK_EXAMPLES = 3


class Network(NamedTuple):
  """What every format is written from.

  Attributes:
    model: computes in float32.
    variables: ``{'params': ..., 'batch_stats': ...}`` of float32 NumPy arrays.
    channels: of the images.
    preprocessing: of the images.
    class_names: in the order of the logits.
    task: what the outputs mean, by name.
    temperature: that divides the logits before they become probabilities; None is 1.
    origin: which weights, for a person.
  """

  model: ResNet
  variables: Mapping[str, Any]
  channels: int
  preprocessing: Preprocessing
  class_names: tuple[str, ...]
  task: str
  temperature: float | None
  origin: str

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Return height, width and channels of the images."""
    return (*self.preprocessing.image_size, self.channels)

  def describe(self) -> dict[str, str]:
    """Return what a file of a format that holds notes says of itself."""
    return {
      'class_names': json.dumps(self.class_names),
      'preprocessing': json.dumps(self.preprocessing._asdict()),
      'task': self.task,
      'temperature': json.dumps(self.temperature),
      'origin': self.origin,
      'jaxres': jaxres.__version__,
    }

  def answer(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return logits and probabilities, float32 ``[B, K]``, of images, uint8 ``[B, H, W, C]``."""
    normalized = normalize(images, self.preprocessing.mean, self.preprocessing.std)
    logits: Any = self.model.apply(self.variables, normalized, train=False)
    return logits, jax.nn.softmax(logits / (self.temperature or 1.0))


def make_images(network: Network, count: int = CHECK_EXAMPLES, seed: int = 0) -> np.ndarray:
  """Return random images that ``network`` sees, uint8 ``[count, H, W, C]`` of several colors and contrasts."""
  rng = np.random.default_rng(seed)
  noise = rng.random((count, *network.image_shape)) * rng.random((count, 1, 1, network.channels))
  return (256 * noise).astype(np.uint8)


def compute_answer(network: Network, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return the logits and the probabilities that jaxres computes, float32 ``[B, K]``, of uint8 ``[B, H, W, C]``."""
  with jax.default_matmul_precision('highest'):
    logits, probabilities = jit(network.answer)(jnp.asarray(images))
  return np.asarray(logits), np.asarray(probabilities)


def relative_error(logits: np.ndarray, expected: np.ndarray) -> float:
  """Return the largest difference of two arrays as a share of the largest of ``expected``; NaN where one is NaN."""
  return float(np.abs(logits - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
