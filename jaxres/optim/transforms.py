"""Gradient transformations beyond optax."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxres import trees
from jaxres.errors import check_range


def add_l1(strength: float, mask: Any) -> optax.GradientTransformation:
  """Return the transform that adds the gradient of ``strength * sum(|w|)`` where ``mask`` is true; 0 at ``w = 0``."""
  add = lambda update, param: update + strength * jnp.sign(param)
  return optax.masked(optax.stateless(lambda updates, params: jax.tree.map(add, updates, params)), mask)


def scale_by_factors(factors: Any) -> optax.GradientTransformation:
  """Return the transform that multiplies each update by its own of ``factors``, a tree of floats."""
  return optax.stateless(lambda updates, _: jax.tree.map(lambda update, factor: factor * update, updates, factors))


def lr_factors(params: Any, lr_mult: Sequence[tuple[str, float]], layer_decay: float) -> Any:
  """Return the factor of each parameter's learning rate: a tree of floats.

  Raises:
    InputError: a pattern of ``lr_mult`` matches nothing, or a factor is out of range.
  """
  depths = layer_depths(trees.leaf_names(params))
  factors = jax.tree.unflatten(jax.tree.structure(params), [layer_decay**depth for depth in depths])
  chosen = jax.tree.map(lambda _: 1.0, params)
  for pattern, factor in reversed(lr_mult):  # the first match wins: it is set last
    check_range('optim.lr_mult', factor, low=0)
    chosen = jax.tree.map(
      lambda old, hit, new=factor: new if hit else old, chosen, trees.match(params, [pattern], 'optim.lr_mult')
    )
  return jax.tree.map(lambda a, b: a * b, factors, chosen)


def layer_depths(names: Sequence[str]) -> list[int]:
  """Return how many blocks up each parameter lies: 0 in the head, 1 in the last block, most in the stem."""

  def layer(name: str) -> tuple[float, ...]:
    if name.startswith('stem'):
      return (0,)
    block = re.match(r'stage(\d+)/block(\d+)/', name)
    return (int(block[1]), int(block[2])) if block else (math.inf,)

  order = sorted({layer(name) for name in names} | {(math.inf,)}, reverse=True)
  return [order.index(layer(name)) for name in names]
