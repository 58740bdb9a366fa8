"""To make variables cheaply, and to compare."""

from typing import Any

import jax
import numpy as np


def flat(tree: Any) -> dict[str, Any]:
  """Return the leaves of ``tree`` by path, such as ``params/stage1/block0/conv1/kernel``."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def drawn(shapes: Any, seed: int = 0) -> Any:
  """Return random variables of these shapes by NumPy: to compile JAX's draws takes many seconds.

  Scales and variances are 0.5 to 1, kernels normal with He's deviation, the rest normal with 0.1.
  """
  rng = np.random.default_rng(seed)

  def leaf(path: tuple[Any, ...], like: Any) -> np.ndarray:
    if path[-1].key in ('scale', 'var'):
      return rng.uniform(0.5, 1, like.shape).astype(like.dtype)
    deviation = np.sqrt(2 / np.prod(like.shape[:-1])) if path[-1].key == 'kernel' else 0.1
    return (deviation * rng.standard_normal(like.shape)).astype(like.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def assert_near(found: Any, expected: Any, tolerance: float, what: str = '') -> None:
  """Assert that the largest difference is less than ``tolerance`` of the largest expected value."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert found.shape == expected.shape, what
  error = np.abs(found - expected).max() / np.abs(expected).max()
  assert error < tolerance, f'{what}: relative error {error:.1e}'


def assert_alive(logits: np.ndarray) -> None:
  """Assert that the logits depend on the image: constants would agree whatever came before them."""
  assert logits.std(axis=0).max() > 0.02 * np.abs(logits).max()


def nchw(array: np.ndarray) -> Any:
  import torch

  return torch.tensor(array.transpose(0, 3, 1, 2).copy())


def samples_per_channel(net: Any) -> dict[str, int]:
  """Have ``net`` note, in the result, how many values each norm takes the mean of."""
  import torch

  counts: dict[str, int] = {}
  for name, module in net.named_modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.register_forward_hook(
        lambda _, args, __, name=name: counts.update({name: args[0].numel() // args[0].shape[1]})
      )
  return counts
