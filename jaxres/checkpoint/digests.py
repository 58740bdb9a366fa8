"""SHA-256 of the leaves of a state and of JSON."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxres import trees
from jaxres.errors import InputError
from jaxres.runtime import sharding


def leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the name and the content of each leaf, one at a time; every process must ask for all of them."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    gathered = sharding.gather(leaf) if isinstance(leaf, jax.Array) else leaf
    yield trees.name(path), np.asarray(gathered)


def leaf_digest(array: np.ndarray) -> str:
  """Return the dtype, the shape and the SHA-256 of the bytes of ``array``, as ``float32[3,3] 0a1b...``."""
  content = np.ascontiguousarray(array)
  sha = hashlib.sha256(content.view(np.uint8).data if content.size and content.ndim else content.tobytes())
  return f'{kind(array.dtype, array.shape)} {sha.hexdigest()}'


def json_digest(content: Any) -> str:
  """Return the SHA-256 of ``content`` as JSON with sorted keys."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def state_digest(digests: Mapping[str, str], progress: Mapping[str, Any]) -> str:
  """Return one SHA-256 of all leaves of a state, by name, and of its progress but for speeds (``.../images_per_s``)."""
  return json_digest([sorted(digests.items()), without_speeds(progress)])


def is_finite(array: np.ndarray) -> bool:
  """Return whether ``array`` has no NaN and no infinity."""
  return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(np.isfinite(array).all())


def check_like(actual: Mapping[str, str], wanted: Mapping[str, str], where: str) -> None:
  """Raise InputError where names or ``dtype[shape]`` of leaves differ; both map names to texts that start with it."""
  for name in sorted(actual.keys() | wanted.keys()):
    one, other = (tree[name].split()[0] if name in tree else 'nothing' for tree in (actual, wanted))
    if one != other:
      raise InputError(f'{where}: {name}', expected=other, found=one)


def kinds(tree: Any) -> dict[str, str]:
  """Return the dtype and the shape of each leaf by its name, as ``float32[3,3]``."""
  return {trees.name(path): kind(x.dtype, x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def without_speeds(content: Any) -> Any:
  """Return JSON without what is named ``..._per_s``, which no two runs share."""
  if not isinstance(content, dict):
    return content
  return {name: without_speeds(value) for name, value in content.items() if not name.endswith('_per_s')}


def kind(dtype: Any, shape: tuple[int, ...]) -> str:
  """Return a dtype and a shape as ``float32[3,3]``."""
  return f'{np.dtype(dtype).name}[{",".join(map(str, shape))}]'
