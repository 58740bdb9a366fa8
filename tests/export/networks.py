"""Networks to export in which every leaf matters."""

from typing import Any

import jax
import numpy as np

from jaxres import models, weights
from jaxres.export.network import Network
from jaxres.weights.preprocessing import Preprocessing

SHORT = {'stage_sizes': (1, 2), 'widths': (8, 16), 'num_classes': 5}


def make_live(model: models.ResNet, channels: int, seed: int = 0) -> dict[str, Any]:
  """Return variables in which every leaf matters: random statistics, scales of both signs, biases."""
  rng = np.random.default_rng(seed)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel':
      return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    if name == 'var':
      return rng.uniform(0.5, 2, shape).astype(np.float32)
    if name == 'scale':
      return (rng.uniform(0.3, 0.8, shape) * rng.choice([-1, 1, 1], shape)).astype(np.float32)
    shift = 1.0 if path[-2].key == 'reduce' else 0.0  # so that the one unit of a small gate is not dead
    return rng.normal(shift, 0.3, shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, weights.abstract(model, channels))


def make_network(
  name: str,
  shape: tuple[int, int, int] = (32, 32, 3),
  temperature: float | None = None,
  classes: int = 11,
  **options: Any,
) -> Network:
  model = models.create(name, num_classes=classes, dtype='float32', **options)
  return wrap(model, shape, temperature)


def wrap(model: models.ResNet, shape: tuple[int, int, int] = (32, 32, 3), temperature: float | None = None) -> Network:
  *size, channels = shape
  mean, std = (tuple(np.linspace(low, high, channels).tolist()) for low, high in ((0.4, 0.6), (0.2, 0.3)))
  preprocessing = Preprocessing(mean, std, tuple(size), 1.0)
  names = tuple(f'class {i}' for i in range(model.num_classes))
  return Network(
    model, make_live(model, channels), channels, preprocessing, names, 'classification', temperature, 'a test'
  )
