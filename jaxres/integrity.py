"""What a saved checkpoint must be: a SHA-256 of every leaf, kept beside it, and whole again when it is read."""

import collections
import contextlib
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxres import sharding, trees
from jaxres.errors import InputError

JSON_ITEMS = {'progress': 'metadata', 'about': 'metadata', 'metrics': 'metrics'}  # and the files of their content
REPLACED = '.replaced'  # ends the name of a checkpoint that makes way for another of its step
MOST_LOOKS = 30  # at checkpoints that a training replaces meanwhile
READ_AHEAD = 8  # arrays: more at a time are no faster, and take memory beside a training


class DamagedError(InputError):
  """A checkpoint is not what was saved; the message says which part of it."""


class Saved(NamedTuple):
  """A checkpoint as it lies on the disk."""

  state: dict[str, np.ndarray]  # the leaves by their names
  digests: dict[str, str]  # of each, as ``leaf_digest`` makes them of what was read
  progress: dict[str, Any]
  about: dict[str, Any]  # the config and what else it was made by; empty where an older jaxres saved it
  verified: bool  # against the digests beside it, which an older jaxres did not write


def leaves(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the name and the whole content of each leaf, one at a time; every process must ask for all of them."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    whole = sharding.gathered(leaf) if isinstance(leaf, jax.Array) else leaf
    yield trees.name(path), np.asarray(whole)


def leaf_digest(array: np.ndarray) -> str:
  """Return the dtype, the shape and the SHA-256 of the bytes of ``array``, as ``float32[3,3] 0a1b...``."""
  content = np.ascontiguousarray(array)
  sha = hashlib.sha256(content.view(np.uint8).data if content.size and content.ndim else content.tobytes())
  return f'{_kind(array.dtype, array.shape)} {sha.hexdigest()}'


def json_digest(content: Any) -> str:
  """Return the SHA-256 of ``content`` as JSON with sorted keys."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def state_digest(digests: Mapping[str, str], progress: Mapping[str, Any]) -> str:
  """Return one SHA-256 of all leaves of a state, by name, and of its progress but for speeds (``.../images_per_s``)."""
  return json_digest([sorted(digests.items()), without_speeds(progress)])


def first_not_finite(tree: Any) -> str | None:
  """Return the name of the first leaf with a NaN or an infinity; None where all is finite."""
  return next((name for name, array in leaves(tree) if not is_finite(array)), None)


def is_finite(array: np.ndarray) -> bool:
  """Return whether ``array`` has no NaN and no infinity."""
  return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(np.isfinite(array).all())


def read(path: pathlib.Path) -> Saved:
  """Return the checkpoint in the directory ``path``, such as ``checkpoints/100``, compared with its digests.

  Raises:
    DamagedError: a part is missing, cannot be read, or is not what was saved.
  """
  parts = {item: _read_json(path, item) for item in ('progress', 'metrics', 'about', 'digests')}
  expected = parts.pop('digests')
  if expected is None and (parts['about'] is not None or 'digests' in _items(path)):
    raise DamagedError('digests: missing')
  for item, content in parts.items():
    found = None if content is None else json_digest(content)
    if expected is not None and found != expected.get(item):
      raise DamagedError(f'{item}: {"missing" if content is None else "not what was saved"}')
  if parts['metrics'] is not None and parts['metrics'].get('step') != _step(path):
    raise DamagedError(f'metrics: of step {parts["metrics"].get("step")}')
  if expected is not None and not isinstance(expected.get('state'), dict):
    raise DamagedError('digests: not what was saved')
  state, digests = _read_state(path / 'state', None if expected is None else expected['state'])
  return Saved(state, digests, parts['progress'] or {}, parts['about'] or {}, expected is not None)


def about(path: pathlib.Path) -> dict[str, Any]:
  """Return what the checkpoint in ``path`` says that it was made by; empty where it does not, or cannot be read."""
  try:
    return _read_json(path, 'about') or {}
  except DamagedError:
    return {}  # which is found when the checkpoint is opened


def difference(path: pathlib.Path, known: Mapping[str, Any]) -> str | None:
  """Return how the checkpoint in ``path`` differs from what was to be saved; None where it does not.

  Args:
    path: of a checkpoint that is committed.
    known: its digests, as they are beside it; they are not taken from there.
  """
  try:
    for item in known.keys() - {'state'}:
      content = _read_json(path, item)
      if content is None or json_digest(content) != known[item]:
        return f'{item}: {"missing" if content is None else "not what was saved"}'
    if _read_json(path, 'digests') != known:
      return 'digests: not what was saved'
    for _ in _compared(path / 'state', known['state']):
      pass
  except DamagedError as error:
    return str(error)
  return None


def damage(path: pathlib.Path) -> str | None:
  """Return what is wrong with the checkpoint in ``path``; None where it is whole."""
  try:
    read(path)
  except DamagedError as error:
    return str(error)
  return None


def numbered(directory: pathlib.Path) -> list[int]:
  """Return the steps of the checkpoints in ``directory``, damaged ones too, in ascending order."""
  return sorted(int(path.name) for path in directory.glob('*') if path.name.isdecimal() and path.name.isascii())


def follow(
  directory: pathlib.Path, choose: Callable[[Mapping[int, pathlib.Path]], int]
) -> tuple[int, pathlib.Path, Saved]:
  """Return a checkpoint in ``directory``, in which a training may save and delete meanwhile: its step, path, content.

  Nothing is locked. What cannot be read is looked for again where the checkpoints are no longer those of before.

  Args:
    directory: such as ``checkpoints``.
    choose: given the paths of all checkpoints by their steps, in ascending order, returns one of the steps.

  Raises:
    InputError: the checkpoint is not what was saved, or it is an error of ``choose``.
  """
  for look in range(MOST_LOOKS):
    paths, step = present(directory), None
    before = identities(paths)
    try:
      step = choose(paths)
      return step, paths[step], read(paths[step])
    except DamagedError as error:
      if look == MOST_LOOKS - 1 or identities(present(directory)) == before:
        raise InputError(f'{directory if step is None else paths[step]}: damaged: {error}') from None
  raise AssertionError


def present(directory: pathlib.Path) -> dict[int, pathlib.Path]:
  """Return the paths of the checkpoints in ``directory`` by their steps, in ascending order.

  One that makes way for another of its step counts until that one is there.
  """
  steps = numbered(directory) or numbered(directory)  # one may come, and the other go, while the first look is taken
  paths = {_step(path): path for path in directory.glob(f'*{REPLACED}') if path.name.split('.')[0].isdecimal()}
  paths |= {step: directory / str(step) for step in steps}
  return dict(sorted(paths.items()))


def identities(paths: Mapping[int, pathlib.Path]) -> dict[int, tuple[int, int] | None]:
  """Return what tells each of the directories from another that takes its place; None where it is gone."""
  found: dict[int, tuple[int, int] | None] = {}
  for step, path in paths.items():
    try:
      status = path.stat()
      found[step] = (status.st_ino, status.st_ctime_ns)
    except OSError:
      found[step] = None
  return found


def _step(path: pathlib.Path) -> int:
  return int(path.name.split('.')[0])


def put_aside(path: pathlib.Path) -> pathlib.Path:
  """Rename a checkpoint's directory, so that a run can save that step again; return where it is now."""
  names = (path.with_name(f'{path.name}.bad{number or ""}') for number in range(10_000))
  to = next(name for name in names if not name.exists())
  os.rename(path, to)
  return to


def check_like(found: Mapping[str, str], wanted: Mapping[str, str], where: str) -> None:
  """Raise InputError where names or ``dtype[shape]`` of leaves differ; both map names to texts that begin with it."""
  for name in sorted(found.keys() | wanted.keys()):
    one, other = (tree[name].split()[0] if name in tree else 'nothing' for tree in (found, wanted))
    if one != other:
      raise InputError(f'{where}: it holds {one} as {name}, expected {other}')


def kinds(tree: Any) -> dict[str, str]:
  """Return the dtype and the shape of each leaf by its name, as ``float32[3,3]``."""
  return {trees.name(path): _kind(x.dtype, x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _read_state(path: pathlib.Path, expected: Mapping[str, str] | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Return the leaves and their digests, compared with those expected where these are known."""
  if expected is None:
    state = _read_unknown(path)
    return state, {name: leaf_digest(array) for name, array in state.items()}
  state = dict(_compared(path, expected))
  return state, {name: expected[name] for name in state}


def _compared(path: pathlib.Path, expected: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the name and the content of each leaf of a state, which is what is expected."""
  for name, array in _read_arrays(path, list(expected)):
    found = leaf_digest(array)
    if found != expected[name]:
      kinds = '' if found.split()[0] == expected[name].split()[0] else f' ({found.split()[0]})'
      raise DamagedError(f'leaf {name}: it is not what was saved{kinds}')
    yield name, array


def _read_arrays(path: pathlib.Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the arrays of these names, as Orbax lays them down: zarr in one OCDBT database; a few are read at a time.

  TensorStore reads them without Orbax, which does not say which array is bad, leaves tracebacks of its threads, and
  needs files that can be damaged too while all arrays are whole.
  """
  files = {'driver': 'file', 'path': f'{path}/'}  # a path, not a URL, in which ``%`` and ``#`` mean something else
  where = {'driver': 'ocdbt', 'base': files}
  opened: dict[str, Any] = {}
  for name in names:
    opened[name] = ts.open({'driver': 'zarr', 'kvstore': where | {'path': name.replace('/', '.') + '/'}}, read=True)
  pending: collections.deque[tuple[str, Any]] = collections.deque()
  for name, future in opened.items():
    pending.append((name, _result(name, future).read()))
    if len(pending) > READ_AHEAD:
      yield _array(*pending.popleft())
  while pending:
    yield _array(*pending.popleft())


def _array(name: str, future: Any) -> tuple[str, np.ndarray]:
  return name, np.asarray(_result(name, future))


def _result(name: str, future: Any) -> Any:
  try:
    return future.result()
  except Exception as error:  # TensorStore has no error of its own
    raise DamagedError(f'leaf {name}: cannot be read: {str(error).split(":")[0]:.60}') from None  # such as DATA_LOSS


def _read_unknown(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Return all arrays of a state whose names are not known: an older jaxres saved it."""
  try:
    with _quiet(), ocp.PyTreeCheckpointer() as reader:
      metadata = reader.metadata(path).item_metadata.tree
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
      return dict(leaves(reader.restore(path, restore_args=as_numpy)))
  except Exception as error:  # of Orbax and TensorStore: many kinds
    raise DamagedError(f'state: cannot be read: {" ".join(str(error).split())[:160]}') from None


def _read_json(path: pathlib.Path, item: str) -> Any:
  """Return the content of an item; None where it is missing."""
  file = path / item / JSON_ITEMS.get(item, 'metadata')
  if not file.exists():
    return None
  try:
    content = json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise DamagedError(f'{item}: cannot be read: {error}') from None
  if not isinstance(content, dict):
    raise DamagedError(f'{item}: not what was saved')
  return content


def _items(path: pathlib.Path) -> list[str]:
  """Return the items that a checkpoint had when it was saved, as far as Orbax's own file tells."""
  try:
    return list(json.loads((path / '_CHECKPOINT_METADATA').read_text())['item_handlers'])
  except (OSError, ValueError, LookupError, TypeError):
    return []


def without_speeds(content: Any) -> Any:
  """Return JSON without what is named ``..._per_s``, which no two runs share."""
  if not isinstance(content, dict):
    return content
  return {name: without_speeds(value) for name, value in content.items() if not name.endswith('_per_s')}


def _kind(dtype: Any, shape: tuple[int, ...]) -> str:
  return f'{np.dtype(dtype).name}[{",".join(map(str, shape))}]'


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keep Orbax from warning that an item, read alone, has no file that describes all items."""
  logger = logging.getLogger('absl')
  before = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(before)
