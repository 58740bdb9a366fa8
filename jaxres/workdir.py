"""The workdir of a run: what is there already, and what is written before the training begins."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

import jaxres
from jaxres import checkpoint, data, distributed, files
from jaxres import config as config_lib
from jaxres.data.fingerprints import differences
from jaxres.errors import InputError

# What may differ between two calls on one workdir: how long, what is kept or shown, where the data lies.
MAY_CHANGE = {
  'train.epochs', 'train.patience', 'train.scan_steps', 'train.log_every_steps', 'train.eval_batch_size',
  'checkpoint.keep_latest', 'checkpoint.keep_best', 'data.data_dir', 'data.path', 'data.download',
  'tta.flip', 'tta.crop', 'tta.pad', 'train.shard_optimizer',
  'data.workers', 'data.max_bad', 'train.max_rollbacks', 'train.spike_factor',
}  # fmt: skip
IDENTITY = ('class_names', 'image_shape', 'splits')  # what of data.json must be the same: mean and std are rounded


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> pathlib.Path:
  """Return where the run goes: ``workdir``, or a fresh directory in it for a dry run.

  Raises:
    InputError: ``workdir`` is a file, or holds checkpoints of another config.
  """
  if config['train']['dry_run']:
    workdir = workdir / 'dry_run'
    if distributed.leads():
      shutil.rmtree(workdir, ignore_errors=True)
    distributed.meet('the dry run before is deleted')
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'--workdir: {workdir} is a file; expected a directory')
  stored = read_json(workdir, 'config.json')
  if stored is None:
    return workdir
  written = config_lib.complete(stored)  # by an older jaxres: a new field is at its default
  changed = config_lib.differences(written, config)
  if fixed := {path: values for path, values in changed.items() if path not in MAY_CHANGE}:
    found = config_lib.describe_changes(fixed)
    raise InputError(f'--workdir: {workdir} holds a run of another config: {found}; use another --workdir')
  return workdir


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Return whether a run would go on in ``workdir``: one checkpoint there is whole."""
  return any(path.name.isdecimal() for path in (workdir / 'checkpoints').glob('*'))


def check_data(workdir: pathlib.Path, info: data.Info) -> None:
  """Raise InputError where ``workdir`` holds checkpoints of a run on other data than that of ``info``."""
  if was := other_data(workdir, info):
    raise InputError(f'--workdir: {workdir} holds a run on other data: {was}; use another --workdir')


def other_data(workdir: pathlib.Path, info: data.Info) -> str:
  """Return how the data of the run in ``workdir`` differs from that of ``info``; nothing where it does not."""
  stored = read_json(workdir, 'data.json')
  found = describe(info)
  for name in IDENTITY if stored else ():
    was, now = stored[name], found[name]
    if name == 'splits':
      was, now = _other_splits(was, now)
    if was != now:
      return f'{name} was {json.dumps(was):.200} there and is {json.dumps(now):.200} now'
  return ''


def _other_splits(was: Mapping[str, str], now: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
  """Return of the fingerprints of the splits what differs."""
  pairs = {part: differences(was.get(part, ''), now.get(part, '')) for part in {**was, **now}}
  different = {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}
  return {part: old for part, (old, _) in different.items()}, {part: new for part, (_, new) in different.items()}


def split_rule(workdir: pathlib.Path) -> int:
  """Return the rule of ``data.loader`` by which the run in ``workdir`` splits its data: today's where there is none.

  Raises:
    InputError: ``data.json`` is damaged, or names a rule that is not known.
  """
  stored = read_json(workdir, 'data.json')
  rule = data.SPLIT_RULE if stored is None else stored.get('split_rule', 1)  # older runs do not say theirs
  if rule not in data.SPLIT_RULES:
    expected = f'expected {" or ".join(map(str, data.SPLIT_RULES))}, found {rule!r}'
    raise InputError(f'{workdir}/data.json: split_rule: {expected}; was it written by a newer jaxres?')
  return int(rule)


def describe(info: data.Info) -> dict[str, Any]:
  """Return ``info`` as JSON has it, the splits by their examples and labels."""
  return json.loads(json.dumps(info._replace(splits=dict(info.splits))._asdict()))


def read_json(workdir: pathlib.Path, name: str) -> Any:
  """Return the content of a file of the run in ``workdir``; None where there is none, or no checkpoint.

  Raises:
    InputError: it is damaged.
  """
  path = workdir / name
  if not path.exists() or not any((workdir / 'checkpoints').glob('*')):
    return None
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f'{path}: cannot be read: {error}; use another --workdir') from None


def environment() -> dict[str, Any]:
  """Return what a run happens in: versions, devices, platform."""
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {name: importlib.metadata.version(name) for name in packages}
  devices = {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'processes': jax.process_count()}
  system = {'python': platform.python_version(), 'platform': platform.platform(), 'cpus': os.cpu_count()}
  return {'jaxres': jaxres.__version__} | versions | devices | system


@contextlib.contextmanager
def open(
  workdir: pathlib.Path, config: Mapping[str, Any], info: data.Info, **options: Any
) -> Iterator[ocp.CheckpointManager]:
  """Make ``workdir``, write config, environment and description of the data there, and open its checkpoints.

  Raises:
    InputError: it cannot be made or written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'--workdir: cannot make {workdir}: {error.strerror}') from error
  with checkpoint.open(workdir / 'checkpoints', **options) as manager:
    files.write_whole(workdir / 'config.json', config_lib.to_json(config))
    files.write_whole(workdir / 'environment.json', json.dumps(environment(), indent=2) + '\n')
    files.write_whole(workdir / 'data.json', json.dumps(describe(info), indent=2) + '\n')
    yield manager
