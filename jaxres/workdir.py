"""The workdir of a run: what is there already, and what is written before the training begins."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

import jaxres
from jaxres import checkpoint, data, distributed, files, integrity, rows, schema
from jaxres import config as config_lib
from jaxres.errors import InputError

# What may differ between two calls on one workdir: how long, what is kept or shown, where the data lies.
MAY_CHANGE = {
  'train.epochs', 'train.patience', 'train.scan_steps', 'train.log_every_steps', 'train.eval_batch_size',
  'checkpoint.keep_latest', 'checkpoint.keep_best', 'data.data_dir', 'data.path', 'data.download',
  'tta.flip', 'tta.crop', 'tta.pad', 'train.shard_optimizer',
  'data.workers', 'data.max_bad', 'train.max_rollbacks', 'train.spike_factor',
}  # fmt: skip
IDENTITY = ('class_names', 'image_shape', 'splits')  # what of data.json must be the same: mean and std are rounded

MAX_CONFIG = 1 << 20  # bytes of config.json
MAX_CHANNELS = 1024
MAX_PIXELS = 1 << 24  # of an image: 4096 x 4096
_SHAPE = schema.array_of(schema.integer(1, MAX_PIXELS), 3, 3)
DATA = {  # the fields of data.json
  'class_names': schema.array_of(schema.text(), least=1),
  'image_shape': schema.Check(
    f'[height, width, channels] of at most {MAX_PIXELS:,} pixels',
    lambda x: _SHAPE.holds(x) and x[0] * x[1] <= MAX_PIXELS,
  ),
  'mean': schema.array_of(schema.number(-1e6, 1e6), least=1, most=MAX_CHANNELS),
  'std': schema.array_of(schema.number(1e-12, 1e6), least=1, most=MAX_CHANNELS),
  'splits': schema.object_of(schema.text()),
}
_SCALAR = schema.either(schema.text(), schema.number(), schema.YES_OR_NO, schema.NOTHING)
ENVIRONMENT = schema.either(_SCALAR, schema.array_of(_SCALAR))  # each value of environment.json


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
  for path, (old, new) in changed.items():
    if path not in MAY_CHANGE:
      found = f'{path} was {json.dumps(old)} there and is {json.dumps(new)} now'
      raise InputError(f'--workdir: {workdir} holds a run of another config: {found}; use another --workdir')
  return workdir


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Return whether a run would go on in ``workdir``: one checkpoint there is whole."""
  return bool(integrity.numbered(workdir / 'checkpoints'))


def check_data(workdir: pathlib.Path, info: data.Info) -> None:
  """Raise InputError where ``workdir`` holds checkpoints of a run on other data than that of ``info``."""
  if was := other_data(workdir, info):
    raise InputError(f'--workdir: {workdir} holds a run on other data: {was}; use another --workdir')


def other_data(workdir: pathlib.Path, info: data.Info) -> str:
  """Return how the data of the run in ``workdir`` differs from that of ``info``; nothing where it does not."""
  stored = read_json(workdir, 'data.json')
  found = describe(info)
  for name in IDENTITY if stored else ():
    if name in stored and stored[name] != found[name]:
      return f'{name} was {json.dumps(stored[name]):.200} there and is {json.dumps(found[name]):.200} now'
  return ''


def describe(info: data.Info) -> dict[str, Any]:
  """Return ``info`` as JSON has it, the splits by their examples and labels."""
  return json.loads(json.dumps(info._replace(splits=dict(info.splits))._asdict()))


def read_json(workdir: pathlib.Path, name: str) -> Any:
  """Return the content of ``config.json`` or ``data.json`` of the run in ``workdir``.

  It is None where there is no such file, or no checkpoint.

  Raises:
    InputError: it is damaged.
  """
  if not any((workdir / 'checkpoints').glob('*')):
    return None
  readers: dict[str, Callable[[pathlib.Path], Any]] = {'config.json': read_config, 'data.json': read_data}
  return readers[name](workdir)


def read_config(workdir: pathlib.Path) -> dict[str, dict[str, Any]] | None:
  """Return the whole config of the run in ``workdir``; None where it has none.

  A field that an older jaxres did not know is at its default.

  Raises:
    DamagedError: ``config.json`` is no config.
  """
  content = files.read_json(workdir / 'config.json', limit=MAX_CONFIG)
  return None if content is None else as_config(content, workdir / 'config.json')


def as_config(content: Any, where: object) -> dict[str, dict[str, Any]]:
  """Return a config that was read as JSON from ``where``, completed and checked.

  Raises:
    DamagedError: it is none; the line names the field.
  """
  sections = {section: schema.Check('an object', lambda x: isinstance(x, dict)) for section in config_lib.SECTIONS}
  schema.check_fields(content, sections, where, optional=sections, closed=True)
  try:
    json.dumps(content, allow_nan=False)
    return config_lib.to_dict(config_lib.complete(content))
  except ValueError as error:
    reason = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in f'{error}'[:240])
    raise files.DamagedError(f'{where}: {reason}; {files.PUT_BACK}') from None


def read_data(workdir: pathlib.Path, *needed: str) -> dict[str, Any] | None:
  """Return the description of the data of the run in ``workdir``: the fields of ``DATA`` that are there.

  Args:
    workdir: of the run.
    *needed: fields without which it is of no use here.

  Returns:
    The content of ``data.json``; None where a jaxres that wrote none made the run.

  Raises:
    DamagedError: it is no such description, or a field that is ``needed`` is missing.
  """
  path = workdir / 'data.json'
  content = files.read_json(path)
  if content is None:
    return None
  optional = DATA.keys() - {'class_names', *needed}
  found = schema.check_fields(content, DATA, path, optional=optional)
  channels = {name: len(found[name]) for name in ('mean', 'std') if name in found}
  channels |= {'image_shape': found['image_shape'][2]} if 'image_shape' in found else {}
  if len({*channels.values()}) > 1:
    raise files.DamagedError(f'{path}: mean, std and image_shape are of different channels; {files.PUT_BACK}')
  return found


def class_names(workdir: pathlib.Path, classes: int, channels: int) -> tuple[str, ...] | None:
  """Return the names of the classes of the run in ``workdir``; None where a jaxres that wrote none made it.

  Args:
    workdir: of the run.
    classes: that its network has, as its checkpoint says.
    channels: of the images that its network takes.

  Raises:
    DamagedError: ``data.json`` is damaged, or not of that network.
  """
  content = read_data(workdir)
  if content is None:
    return None
  known = {'class_names': len(content['class_names'])}
  known |= {'channels': content['image_shape'][2]} if 'image_shape' in content else {}
  for name, expected in {'class_names': classes, 'channels': channels}.items():
    if known.get(name, expected) != expected:
      found = f'expected {expected:,} as the checkpoint has, found {known[name]:,}'
      raise files.DamagedError(f'{workdir / "data.json"}: {name}: {found}; {files.PUT_BACK}')
  return tuple(content['class_names'])


def check_same_network(workdir: pathlib.Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> None:
  """Raise InputError where ``config.json`` is not of the run that saved a checkpoint.

  Args:
    workdir: of the run.
    config: of ``read_config``.
    about: of ``integrity.read``; an older jaxres saved nothing there, and then nothing can be said.
  """
  saved = about.get('config')
  if not saved:
    return
  if integrity.json_digest(saved) != about.get('config_sha256'):
    raise files.DamagedError(f'{workdir}: the config in the checkpoint is not that of its digest')
  there = as_config(saved, f'{workdir}: the config in the checkpoint')
  for path, (old, new) in config_lib.differences(there, config).items():
    if path not in MAY_CHANGE:
      found = f'expected {json.dumps(old):.60} as the checkpoint was saved with, found {json.dumps(new):.60}'
      raise files.DamagedError(f'{workdir / "config.json"}: {path}: {found}; {files.PUT_BACK}')


def read_environment(workdir: pathlib.Path) -> dict[str, Any]:
  """Return what the run in ``workdir`` happened in; nothing where a jaxres that wrote nothing made it.

  Raises:
    DamagedError: ``environment.json`` is no such description.
  """
  content = files.read_json(workdir / 'environment.json')
  if content is None:
    return {}
  fields = dict.fromkeys(content, ENVIRONMENT) if isinstance(content, dict) else {}
  return schema.check_fields(content, fields, workdir / 'environment.json')


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Return the rows of ``metrics.jsonl`` of the run in ``workdir``; say on standard error which are damaged."""
  known, damage = rows.read(workdir / 'metrics.jsonl')
  if damage:
    print(f'warning: {damage}', file=sys.stderr)
  return known


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
