"""Weights of torch networks in, weights of jaxres out; torch itself is never imported.

from jaxres import models, weights

state_dict = weights.read('resnet50.pth')
found = weights.recognize(state_dict)
model = models.create(found.name, **found.options)
variables = weights.to_variables(state_dict, model)
weights.write('again.pth', weights.from_variables(variables, model, batches=weights.batches(state_dict)))
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxres.errors import InputError
from jaxres.models import ResNet
from jaxres.weights import dtypes, names
from jaxres.weights.architecture import Architecture, name_of, recognize
from jaxres.weights.dtypes import COUNTER
from jaxres.weights.names import Dialect, describe_value
from jaxres.weights.reader import File, read, read_file
from jaxres.weights.selection import compile_patterns
from jaxres.weights.writer import write

__all__ = [
  'Architecture',
  'Dialect',
  'File',
  'abstract',
  'batches',
  'dialect_of',
  'digest',
  'from_variables',
  'name_of',
  'read',
  'read_file',
  'recognize',
  'to_variables',
  'write',
]  # fmt: skip
SHOWN = 5  # names of each kind in an error
StateDict = Mapping[str, np.ndarray]


def to_variables(
  state_dict: StateDict,
  model: ResNet,
  variables: Mapping[str, Any] | None = None,
  *,
  skip: Sequence[str] = (),
  skipped: Collection[str] = (),
  where: str = 'state_dict',
) -> dict[str, Any]:
  """Return the variables of ``model`` that ``state_dict`` holds: all of them, or what ``skip`` leaves.

  Args:
    state_dict: float32 arrays by torch's names, as ``read`` returns them.
    model: the network.
    variables: what the skipped leaves keep; needed only where ``skip`` matches leaves.
    skip: regular expressions. Leaves whose path, such as ``head/fc/kernel``, matches one in full are not loaded, and
      tensors of ``state_dict`` whose name matches are not missed.
    skipped: names that ``skip`` has matched in the file and that may have been left out there, see ``read_file``.
    where: the file, for the error.

  Returns:
    ``{'params': ..., 'batch_stats': ...}`` of float32 NumPy arrays, contiguous, that share no memory.

  Raises:
    InputError: names are missing, unexpected or of another shape; or a pattern of ``skip`` is no regular expression
      or matches nothing.
  """
  template = variables or abstract(model, recognize(state_dict, where).channels)
  leaves = flax.traverse_util.flatten_dict({key: template[key] for key in ('params', 'batch_stats')}, sep='/')
  dialect = dialect_of(state_dict)._replace(average=model.shortcut == 'average')
  known = names.torch_names([*leaves, *names.counters(leaves)], dialect)
  left_out = _match_skipped(skip, known, [*state_dict, *skipped], where)
  if variables is None and (bare := [path for path in leaves if path in left_out]):
    raise InputError(where, f'skip: nothing would give {_join_names(bare)} their values')
  wanted = {path: name for path, name in known.items() if path in leaves and path not in left_out}
  allowed = {known.get(name, name) for name in left_out} | set(known.values())
  missing = [name for name in wanted.values() if name not in state_dict]
  unexpected = [name for name in state_dict if name not in allowed]
  shapes = {name: names.torch_shape(leaves[path].shape) for path, name in wanted.items()}
  shapes |= {name: () for path, name in known.items() if path not in leaves and path not in left_out}
  given = {name: state_dict[name] for name in shapes if name in state_dict}
  complaints = {
    'missing': missing,
    'unexpected': unexpected,
    'of another shape': [
      f'{describe_value(name, 50)} {names.describe_shape(value.shape)} instead of {list(shapes[name])}'
      for name, value in given.items()
      if value.shape != shapes[name]
    ],
    'not finite': [name for name in wanted.values() if name in given and not np.isfinite(given[name]).all()],
    'a negative variance': [  # the network would make NaN of every image
      name for path, name in wanted.items() if path.endswith('/var') and name in given and (given[name] < 0).any()
    ],
    'not float32': [name for name in wanted.values() if name in given and given[name].dtype != np.float32],
  }
  if any(complaints.values()):
    kinds = {kind: listed for kind, listed in complaints.items() if listed}
    max_shown = -(-SHOWN // len(kinds))  # of several kinds fewer each: it is one short line
    problems = '; '.join(f'{kind}: {_join_names(listed, max_shown)}' for kind, listed in kinds.items())
    raise InputError(f'{where}{_describe(state_dict)}', f'does not fit the model: {problems}')
  loaded = {path: names.to_jaxres(state_dict[name]) for path, name in wanted.items()}
  return flax.traverse_util.unflatten_dict(leaves | loaded, sep='/')


def from_variables(
  variables: Mapping[str, Any],
  model: ResNet,
  dialect: Dialect | None = None,
  *,
  batches: Mapping[str, int] | int = 0,
) -> dict[str, np.ndarray]:
  """Return ``variables`` as a torch state dict, in torch's order; the inverse of ``to_variables``.

  Args:
    variables: of ``model``, float32.
    model: the network.
    dialect: of the names; None is torchvision's, or akamaster's where the shortcuts have no parameters.
    batches: ``num_batches_tracked``, by name as ``batches`` returns it; a number is that of every BatchNorm.

  Returns:
    float32 arrays and int64 scalars.
  """
  leaves = flax.traverse_util.flatten_dict({key: variables[key] for key in ('params', 'batch_stats')}, sep='/')
  average = model.shortcut == 'average'
  dialect = Dialect.of_model(model.shortcut) if dialect is None else dialect._replace(average=average)
  result = {}
  for path, name in names.torch_names([*leaves, *names.counters(leaves)], dialect).items():
    if path in leaves:
      result[name] = names.to_torch(np.asarray(leaves[path], np.float32))
    elif isinstance(batches, int) or name in batches:
      result[name] = np.array(batches if isinstance(batches, int) else batches[name], np.int64)
  return result


def batches(state_dict: StateDict) -> dict[str, int]:
  """Return every ``num_batches_tracked`` of ``state_dict`` by its name."""
  return {name: int(dtypes.counters(value)) for name, value in state_dict.items() if name.endswith(COUNTER)}


def dialect_of(state_dict: StateDict) -> Dialect:
  """Return how the names of ``state_dict`` are spelled."""
  return Dialect.of_names({name: value.shape for name, value in state_dict.items()})


def abstract(model: ResNet, channels: int) -> dict[str, Any]:
  """Return the shapes and dtypes of the variables of ``model`` for images with ``channels`` channels."""
  images = jnp.zeros((1, 32, 32, channels))
  return dict(jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0)))


def digest(state_dict: StateDict) -> str:
  """Return the SHA-256 of names, shapes, dtypes and values, whatever the order and the file format."""
  sha256 = hashlib.sha256()
  for name, value in sorted(state_dict.items()):
    sha256.update(f'{name} {value.dtype.name} {list(value.shape)}\n'.encode())
    sha256.update(value.tobytes())
  return sha256.hexdigest()


def _match_skipped(skip: Sequence[str], known: Mapping[str, str], given: Iterable[str], where: str) -> set[str]:
  """Return the paths, and the names in the file, that a pattern of ``skip`` matches."""
  candidates = {path: path.partition('/')[2] for path in known} | {name: name for name in (*known.values(), *given)}
  result = set()
  for pattern in compile_patterns(skip, where):
    matches = {key for key, name in candidates.items() if pattern.fullmatch(name)}
    if not matches:
      near = 'names read like "head/fc/kernel" or "fc.weight"'
      raise InputError(where, f'skip: {pattern.pattern!r} matches nothing', fix=near)
    result |= matches
  return result | {path for path, name in known.items() if name in result}


def _describe(state_dict: StateDict) -> str:
  try:
    name, options, channels = recognize(state_dict)
  except InputError:
    return ''
  return f' ({", ".join([name, *(f"{key}={value}" for key, value in options.items())])}, {channels} channels)'


def _join_names(words: Sequence[str], max_shown: int = SHOWN) -> str:
  rest = len(words) - max_shown
  size = max(80, 240 // max_shown)
  return ', '.join(describe_value(name, size) for name in words[:max_shown]) + (f' and {rest} more' if rest > 0 else '')
