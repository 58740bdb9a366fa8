"""The runs below a directory: what differs in their configs, what they reached, whether they train."""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxres import workdir
from jaxres.errors import InputError
from jaxres.files import DamagedError
from jaxres.runtime import lock

SKIPPED = ('checkpoints', 'dry_run')  # directories of a run that hold no other


class Row(NamedTuple):
  """A run."""

  path: pathlib.Path
  fields: Mapping[str, Any]  # of its config, by path: those in which the runs differ
  val: float | None  # the best top-1 of validation, a fraction
  test: float | None  # top-1 of test at the same evaluation, or at the last where there is no validation
  state: str


def read(directory: pathlib.Path) -> tuple[list[Row], list[str]]:
  """Return the runs in ``directory`` and below, by path, and a line on each that cannot be read.

  Raises:
    InputError: it is no directory, or no run is in it.
  """
  if not directory.is_dir():
    raise InputError('DIR', f'no such directory: {directory}')
  configs: dict[pathlib.Path, dict[str, Any]] = {}
  problems = []
  for path in find(directory):
    try:
      config = workdir.read_config(path)
    except DamagedError as error:
      problems.append(str(error))
    else:
      configs[path] = flatten(config or {})
  if not configs and not problems:
    raise InputError('DIR', f'no run in {directory}', expected='config.json beside metrics.jsonl or checkpoints/')
  names = differing([*configs.values()])
  return [_row(path, config, {name: config[name] for name in names}) for path, config in configs.items()], problems


def find(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yield the workdirs in ``directory`` and below, by path; links are not followed."""
  for place, folders, names in os.walk(directory):
    folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith('.'))
    path = pathlib.Path(place)
    if 'config.json' in names and ('metrics.jsonl' in names or (path / 'checkpoints').is_dir()):
      yield path


def flatten(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Return the fields of ``config`` by their paths, such as ``'optim.lr'``."""
  return {f'{section}.{name}': value for section, fields in config.items() for name, value in fields.items()}


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
  """Return the paths of the fields that are not equal in all ``configs``."""
  return [name for name in configs[0] if any(config[name] != configs[0][name] for config in configs)] if configs else []


def _row(path: pathlib.Path, config: Mapping[str, Any], fields: Mapping[str, Any]) -> Row:
  log = workdir.read_metrics(path)  # says which lines are damaged
  lead = 'ema/' if config['train.ema'] else ''
  evaluations = [row for row in log if f'{lead}test/top1' in row or f'{lead}val/top1' in row]
  scored = [row for row in evaluations if f'{lead}val/top1' in row]
  best = max(scored, key=lambda row: row[f'{lead}val/top1'], default=None)
  last = best or (evaluations[-1] if evaluations else {})
  return Row(path, fields, last.get(f'{lead}val/top1'), last.get(f'{lead}test/top1'), state(path, config, evaluations))


def state(path: pathlib.Path, config: Mapping[str, Any], evaluations: Sequence[Mapping[str, float]]) -> str:
  """Return whether a run is ``running``, ``finished`` or ``stopped``, and how far it is.

  Args:
    path: of the run.
    config: its fields by their paths.
    evaluations: the rows of its log that are evaluations.
  """
  epoch, epochs = evaluations[-1]['epoch'] if evaluations else 0.0, config['train.epochs']
  far = f'{epoch:g} of {epochs:g} epochs'
  if lock.find_trainer(path):
    return f'running: {far}'
  if evaluations and epoch >= epochs * (1 - 1e-3) - _step(evaluations[-1]):
    return 'finished'
  if config['train.patience'] and _stale(config, evaluations) >= config['train.patience']:
    return f'finished early: {far}'
  return f'stopped: {far}'


def _step(row: Mapping[str, float]) -> float:
  """Return one step in epochs, which the end is rounded to."""
  return row['epoch'] / row['step'] if row['step'] else 0.0


def _stale(config: Mapping[str, Any], evaluations: Sequence[Mapping[str, float]]) -> int:
  """Return how many evaluations there were since the best."""
  name = 'ema/val/top1' if config['train.ema'] else 'val/top1'
  scores = [row[name] for row in evaluations if name in row]
  return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def describe(fields: Mapping[str, Any]) -> str:
  """Return fields as words of a command line."""
  return ' '.join(f'{path}={value}' for path, value in fields.items()) or '-'
