"""Read checkpoints, and compare every leaf with the SHA-256 that is kept beside it."""

import collections
import contextlib
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxres import files as files_lib
from jaxres import schema
from jaxres.checkpoint import digests as digests_lib
from jaxres.checkpoint import steps
from jaxres.errors import InputError
from jaxres.files import DamagedError

JSON_ITEMS = {'progress': 'metadata', 'about': 'metadata', 'metrics': 'metrics'}  # and the files of their content
DESCRIPTION = '_CHECKPOINT_METADATA'  # of Orbax
MAX_LOOKS = 30  # at checkpoints that a training replaces meanwhile
READ_AHEAD = 8  # arrays: more at a time are no faster, and take memory beside a training
LEAF = re.compile(r'[a-z0-9_]+\[(\d+(,\d+)*)?\] [0-9a-f]{64}')  # as ``leaf_digest`` makes it
_DIGEST = schema.Check('a dtype, a shape and a SHA-256', lambda x: isinstance(x, str) and bool(LEAF.fullmatch(x)))
_LEAVES = schema.Check(
  'the digest of each leaf',
  lambda x: (
    schema.object_of(_DIGEST, min_items=1).holds(x) and all(name.isprintable() and 0 < len(name) < 300 for name in x)
  ),
)
DIGESTS = {'state': _LEAVES} | dict.fromkeys(JSON_ITEMS, schema.SHA256)
SCORES = schema.object_of(schema.number())  # of the item ``metrics``


class Saved(NamedTuple):
  """A checkpoint as it lies on the disk."""

  state: dict[str, np.ndarray]  # the leaves by their names
  digests: dict[str, str]  # of each, as ``leaf_digest`` makes them of what was read
  progress: dict[str, Any]
  about: dict[str, Any]  # the config and what else it was made by; empty where an older jaxres saved it
  scores: dict[str, float]  # what it is ranked by: its step, and its validation top-1 where it has one
  verified: bool  # against the digests beside it, which an older jaxres did not write


def read(path: pathlib.Path) -> Saved:
  """Return the checkpoint in the directory ``path``, such as ``checkpoints/100``, compared with its digests.

  Raises:
    DamagedError: a part is missing, cannot be read, or is not what was saved.
  """
  parts = {item: _read_item(path, item) for item in ('progress', 'metrics', 'about', 'digests')}
  expected = parts.pop('digests')
  if expected is None:
    _check_older(path)
  else:
    schema.check_fields(expected, DIGESTS, 'digests', optional=JSON_ITEMS, fix='')
  for item, content in parts.items():
    digest = None if content is None else digests_lib.json_digest(content)
    if expected is not None and digest != expected.get(item):
      raise DamagedError(item, 'missing' if content is None else 'not what was saved')
  scores = parts['metrics'] or {}
  if parts['metrics'] is not None and scores.get('step') != steps.step_of(path):
    raise DamagedError('metrics', f'of step {schema.brief(scores.get("step"))}')
  _check_about(parts['about'] or {})
  state, digests = _read_state(path / 'state', None if expected is None else expected['state'])
  return Saved(state, digests, parts['progress'] or {}, parts['about'] or {}, scores, expected is not None)


def about(path: pathlib.Path) -> dict[str, Any]:
  """Return what the checkpoint in ``path`` was made by; empty where it does not say so, or is damaged."""
  try:
    content, known = _read_item(path, 'about') or {}, _read_item(path, 'digests') or {}
    _check_about(content)
  except DamagedError:
    return {}  # which is found when the checkpoint is opened
  return content if known.get('about') == digests_lib.json_digest(content) else {}


def _check_about(content: Mapping[str, Any]) -> None:
  """Raise DamagedError where the config that a checkpoint was made by is not that of its digest."""
  if content.get('config_sha256') not in (None, digests_lib.json_digest(content.get('config'))):
    raise DamagedError('about', 'the config in it is not that of its digest')


def difference(path: pathlib.Path, known: Mapping[str, Any]) -> str | None:
  """Return how the checkpoint in ``path`` differs from what was to be saved; None where it does not.

  Args:
    path: of a checkpoint that is committed.
    known: its digests, as they are beside it; they are not taken from there.
  """
  try:
    for item in known.keys() - {'state'}:
      content = _read_item(path, item)
      if content is None or digests_lib.json_digest(content) != known[item]:
        return f'{item}: {"missing" if content is None else "not what was saved"}'
    if _read_item(path, 'digests') != known:
      return 'digests: not what was saved'
    for _ in _compare_arrays(path / 'state', known['state']):
      pass
  except DamagedError as error:
    return str(error)
  return None


def read_scores(path: pathlib.Path) -> dict[str, float]:
  """Return what the checkpoint in ``path`` is ranked by: its step, and its score on validation where it has one.

  Raises:
    DamagedError: it cannot be read.
  """
  scores = _read_item(path, 'metrics')
  if scores is None or not SCORES.holds(scores):
    raise DamagedError('metrics', 'missing' if scores is None else 'not what was saved')
  return {'step': steps.step_of(path)} | scores


def find_damage(path: pathlib.Path) -> str | None:
  """Return what is wrong with the checkpoint in ``path``; None where it is intact."""
  try:
    read(path)
  except DamagedError as error:
    return str(error)
  return None


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
  for look in range(MAX_LOOKS):
    paths, step = steps.list_checkpoints(directory), None
    before = steps.identities(paths)
    try:
      step = choose(paths)
      return step, paths[step], read(paths[step])
    except DamagedError as error:
      if look == MAX_LOOKS - 1 or steps.identities(steps.list_checkpoints(directory)) == before:
        raise InputError(directory if step is None else paths[step], f'damaged: {error}') from None
  raise AssertionError


def _read_state(path: pathlib.Path, expected: Mapping[str, str] | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Return the leaves and their digests, compared with those expected where these are known."""
  if expected is None:
    state = _read_unknown(path)
    return state, {name: digests_lib.leaf_digest(array) for name, array in state.items()}
  state = dict(_compare_arrays(path, expected))
  return state, {name: expected[name] for name in state}


def _compare_arrays(path: pathlib.Path, expected: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the name and the content of each leaf of a state, which is what is expected."""
  for name, array in _read_arrays(path, expected):
    digest = digests_lib.leaf_digest(array)
    if digest != expected[name]:
      kinds = '' if digest.split()[0] == expected[name].split()[0] else f' ({digest.split()[0]})'
      raise DamagedError(f'leaf {name}', f'it is not what was saved{kinds}')
    yield name, array


def _read_arrays(path: pathlib.Path, expected: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the arrays that are there, which must be those of these digests; a few are read at a time.

  Orbax lays them down as zarr in one OCDBT database.

  TensorStore reads them without Orbax, which does not say which array is bad, leaves tracebacks of its threads, and
  needs files that can be damaged too while all arrays are intact. The dtype and the shape are compared before memory is
  taken for them.
  """
  # A path, not a URL, in which ``%`` and ``#`` mean something else; without ``..``, which TensorStore refuses.
  files = {'driver': 'file', 'path': f'{os.path.realpath(path)}/'}
  where = {'driver': 'ocdbt', 'base': files}
  opened: dict[str, Any] = {}
  for name in expected:
    opened[name] = ts.open({'driver': 'zarr', 'kvstore': where | {'path': name.replace('/', '.') + '/'}}, read=True)
  pending: collections.deque[tuple[str, Any]] = collections.deque()
  for name, future in opened.items():
    store = _result(name, future)
    kind = digests_lib.kind(store.dtype.numpy_dtype, store.shape)
    if kind != expected[name].split()[0]:
      raise DamagedError(f'leaf {name}', f'it is not what was saved ({kind:.80})')
    pending.append((name, store.read()))
    if len(pending) > READ_AHEAD:
      yield _array(*pending.popleft())
  while pending:
    yield _array(*pending.popleft())
  _check_names(_result('names', ts.KvStore.open(where)), expected)


def _array(name: str, future: Any) -> tuple[str, np.ndarray]:
  return name, np.asarray(_result(name, future))


def _check_names(store: Any, expected: Mapping[str, str]) -> None:
  """Raise DamagedError where arrays lie in ``store`` whose digests are not known."""
  arrays = {key.decode(errors='replace').rpartition('/')[0] for key in _result('names', store.list())}
  unknown = sorted(arrays - {name.replace('/', '.') for name in expected})
  if unknown:
    raise DamagedError('digests', f'none of {len(unknown)} arrays that are there, the first {unknown[0]:.80}')


def _result(name: str, future: Any) -> Any:
  try:
    return future.result()
  except Exception as error:  # TensorStore has no error class
    raise DamagedError(f'leaf {name}', f'cannot be read: {str(error).split(":")[0]:.60}') from None  # such as DATA_LOSS


def _read_unknown(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Return all arrays of a state whose names are not known: an older jaxres saved it."""
  path = pathlib.Path(os.path.realpath(path))
  try:
    with _silence_orbax(), ocp.PyTreeCheckpointer() as reader:
      metadata = reader.metadata(path).item_metadata.tree
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
      return dict(digests_lib.leaves(reader.restore(path, restore_args=as_numpy)))
  except Exception as error:  # of Orbax and TensorStore: many kinds
    raise DamagedError('state', f'cannot be read: {" ".join(str(error).split())[:160]}') from None


def _read_item(path: pathlib.Path, item: str) -> Any:
  """Return the content of an item; None where it is missing."""
  file = path / item / JSON_ITEMS.get(item, 'metadata')
  content = files_lib.read_json(file, finite=False, where=item, fix='')  # a metric may be no number
  if content is not None and not isinstance(content, dict):
    raise DamagedError(item, 'not what was saved')
  return content


def _check_older(path: pathlib.Path) -> None:
  """Raise DamagedError where a checkpoint without digests is not known to be of a jaxres that wrote none.

  Orbax's own file tells what items it had when it was saved.
  """
  described = files_lib.read_json(path / DESCRIPTION, finite=False, where='digests', fix='')
  items = described.get('item_handlers') if isinstance(described, dict) else None
  newer = ('digests', 'about')
  if not isinstance(items, dict) or any(item in items or os.path.lexists(path / item) for item in newer):
    raise DamagedError('digests', 'missing')


@contextlib.contextmanager
def _silence_orbax() -> Iterator[None]:
  """Keep Orbax from warning that an item, read alone, has no file that describes all items."""
  logger = logging.getLogger('absl')
  before = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(before)
