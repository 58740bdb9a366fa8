"""A step that was not finite: what of it, on which examples, and a file by which it is run again."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxres import config as config_lib
from jaxres import files, schema, trees
from jaxres import workdir as workdir_lib
from jaxres.checkpoint import digests
from jaxres.data import sampler
from jaxres.errors import InputError
from jaxres.files import parse_json
from jaxres.npz import load_npz
from jaxres.runtime import distributed, sharding
from jaxres.state import TrainState
from jaxres.train.setup import Setup, make_setup

SHOWN_IDS = 8  # of a batch, in one line
AGAIN = 'the run that stops at that step again writes it again'
_NAME = schema.Check('a name', lambda x: type(x) is str and len(x) < 300 and x.isprintable())
_OBJECT = schema.Check('an object', lambda x: isinstance(x, dict))
ABOUT = {'config': _OBJECT, 'found': _OBJECT, 'split_rule': schema.integer(1, 2)}
DIAGNOSIS = {  # the fields of ``Diagnosis``
  'step': schema.integer(0, 2**31 - 1),
  'loss': schema.Check('a number', lambda x: type(x) in (int, float)),
  'bad': schema.array_of(_NAME),
  'counts': schema.object_of(_NAME),
}


class NotFiniteError(InputError):
  """A step of the training was not taken, as it was not finite."""


class Diagnosis(NamedTuple):
  """What a step gives whose state is known."""

  step: int
  loss: float  # mean over the batch, nats
  bad: tuple[str, ...]  # what is not finite, the stem first and the head last; where it starts, then where it leads
  counts: Mapping[str, str]  # of parameters, gradients, ...: how many arrays are not finite, as '3 of 62'

  def describe(self) -> str:
    """Return it in words, as the end of a sentence."""
    if not self.bad:
      return f'step {self.step}: loss {self.loss:.4g}, and all is finite'
    counts = ', '.join(f'{count} {name}' for name, count in self.counts.items())
    return f'step {self.step} is not finite: loss {self.loss:.4g}, first {self.bad[0]}; not finite are {counts}'


def probe(setup: Setup, train_state: TrainState) -> Diagnosis:
  """Return what the step behind ``train_state`` gives on its batch."""
  feeds = feeds_of(setup, int(train_state.step))
  device_data = setup.dataset.train.device_data
  loss, finite = jax.device_get(setup.probe(train_state, setup.key, device_data, feeds, setup.extras))
  bad, counts = [], {}
  for part in ('params', 'batch_stats', 'loss', 'gradients'):
    tree = finite.get(part, {'': np.isfinite(loss)})
    is_finite = {trees.name(path): bool(good) for path, good in jax.tree_util.tree_leaves_with_path(tree)}
    names = sorted((name for name, good in is_finite.items() if not good), key=_depth)
    bad += [f'{part}/{name}'.removesuffix('/') for name in names]
    if part in finite:
      counts[part] = f'{len(names)} of {len(is_finite)}'
  return Diagnosis(int(train_state.step), float(loss), tuple(bad), counts)


def explain(setup: Setup, train_state: TrainState, workdir: pathlib.Path) -> NotFiniteError:
  """Return the error that names the step at which ``train_state`` halted, and write the file that repeats it."""
  before = dataclasses.replace(train_state, halted=jnp.zeros_like(train_state.halted))
  diagnosis, ids = probe(setup, before), ids_of(setup, int(before.step))
  try:
    path = write(workdir, before, diagnosis, ids, setup.config, setup.dataset.info.split_rule)
    again = f'jaxres doctor --replay {path} runs it again'
  except (OSError, InputError) as error:
    again = f'no file of it could be written: {getattr(error, "strerror", None) or error}'
  examples = ', '.join([*map(str, ids[:SHOWN_IDS]), *['...'] * (len(ids) > SHOWN_IDS)])
  step, _, values = diagnosis.describe().partition(': ')
  problem = f'{values}; the batch is of training examples {examples}'
  return NotFiniteError(step, problem, fix=f'lower optim.lr or lengthen optim.warmup_epochs; {again}')


def write(
  workdir: pathlib.Path,
  train_state: TrainState,
  diagnosis: Diagnosis,
  ids: np.ndarray,
  config: Mapping[str, Any],
  split_rule: int,
) -> pathlib.Path:
  """Write what ``replay`` needs to ``<workdir>/bad_step_<N>.npz``; return the path. The first process writes.

  Args:
    workdir: of the run.
    train_state: from before the step.
    diagnosis: what is the matter with it.
    ids: int ``[B]``: the examples of its batch, by their place in the training split.
    config: of the run.
    split_rule: of ``data.load``.
  """
  path = workdir / f'bad_step_{diagnosis.step}.npz'
  arrays: dict[str, Any] = {f'state/{name}': array for name, array in digests.leaves(train_state.saved_fields)}
  if distributed.is_main_process():
    about = json.dumps({'config': config_lib.to_dict(config), 'found': diagnosis._asdict(), 'split_rule': split_rule})
    with files.file_errors(path), files.complete(path) as file:
      np.savez(file, **arrays, ids=ids, about=np.array(about))
  return path


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Diagnosis, dict[str, dict[str, Any]], int]:
  """Return the arrays in a file of ``write``, what was found when it was written, the run's config and split rule.

  Raises:
    InputError: it is no such file, or damaged.
  """
  where = f'--replay: {path}'
  try:
    content = load_npz(path)
    if 'about' not in content:
      raise ValueError('it has no array called about')
    about = parse_json(str(content['about']), finite=False)  # the loss may be NaN
  except ValueError as error:
    raise InputError(where, f'not a file of a bad step: {error}', fix=AGAIN) from None
  about = schema.check_fields(about, ABOUT, f'{where}: about', optional=('split_rule',), fix=AGAIN)
  diagnosis = schema.check_fields(about['found'], DIAGNOSIS, f'{where}: about.found', closed=True, fix=AGAIN)
  ids = content.get('ids', np.empty(0))
  if ids.dtype.kind not in 'iu' or ids.ndim != 1 or not ids.size:
    raise InputError(
      f'{where}: ids', expected='whole numbers [B]', found=f'{ids.dtype.name} {list(ids.shape)}', fix=AGAIN
    )
  then = Diagnosis(**diagnosis | {'bad': tuple(diagnosis['bad'])})
  config = workdir_lib.as_config(about['config'], f'{where}: config')
  return content, then, config, about.get('split_rule', 1)  # a jaxres that knew one rule wrote none


def replay(path: pathlib.Path) -> tuple[Diagnosis, Diagnosis, np.ndarray]:
  """Return what was found when a file of ``write`` was written, what its step gives now, and the examples' ids.

  Raises:
    InputError: the file, or the data of its config, cannot be used.
  """
  if not path.exists():
    raise InputError(
      '--replay', f'no such file: {path}', fix='a run that stops at a step that is not finite writes one'
    )
  content, then, config, split_rule = read(path)
  setup = make_setup(config, split_rule)
  setup.dataset.place(setup.mesh)
  template = jax.eval_shape(setup.create, setup.key).saved_fields
  saved = {name.removeprefix('state/'): array for name, array in content.items() if name.startswith('state/')}
  digests.check_like(
    {name: digests.leaf_digest(array) for name, array in saved.items()}, digests.kinds(template), str(path)
  )
  fields = jax.tree_util.tree_map_with_path(lambda name, _: jnp.asarray(saved[trees.name(name)]), template)
  return then, probe(setup, jax.device_put(TrainState(**fields), setup.shardings)), content['ids']


def ids_of(setup: Setup, step: int) -> np.ndarray:
  """Return the examples of the batch of ``step``, int ``[B]``, by their place in the training split."""
  train = setup.dataset.train
  return sampler.train_indices(train.seed, 0 if setup.options.overfit_one_batch else step, train.batch_size, train.size)


def feeds_of(setup: Setup, step: int) -> Any:
  """Return the feeds of ``step`` alone."""
  feeds = jax.tree.map(lambda x: x[None], next(iter(setup.feeds(step, step + 1))))
  return sharding.make_global_arrays(feeds, sharding.scan_sharding(setup.mesh))


def _depth(name: str) -> tuple[int, str]:
  return (0 if name.startswith('stem') else 2 if name.startswith('head') else 1, name)
