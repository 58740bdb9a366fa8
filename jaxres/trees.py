"""Trees of arrays by the names of their leaves: ``stage1/block0/conv1/kernel``."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from jaxres.errors import InputError


def name(path: Sequence[Any]) -> str:
  """Return a JAX key path as ``a/b/c``."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def leaf_names(tree: Any) -> list[str]:
  """Return the names of the leaves of ``tree``, in the order of ``jax.tree.leaves``."""
  return [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def count(tree: Any) -> int:
  """Return the number of elements in all leaves of ``tree``."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def match(tree: Any, patterns: Sequence[str], where: str) -> Any:
  """Return a tree of bools: whether the name of the leaf matches one of ``patterns``.

  Args:
    tree: any pytree.
    patterns: regular expressions, each matched against the full name.
    where: the config field they come from, for the error.

  Raises:
    InputError: a pattern is not a regular expression, or matches no leaf.
  """
  known = leaf_names(tree)
  for pattern in patterns:
    try:
      matched = any(re.fullmatch(pattern, leaf) for leaf in known)
    except re.error as error:
      raise InputError(where, f'{pattern!r} is no regular expression: {error}') from None
    if not matched:
      raise InputError(where, f'{pattern!r} matches no parameter', fix=f'names read like {known[0]!r}')
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(re.fullmatch(pattern, name(path)) for pattern in patterns), tree
  )
