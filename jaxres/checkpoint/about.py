"""What a checkpoint was made by, and whether that is this run."""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jaxres
from jaxres import config as config_lib
from jaxres.checkpoint import digests
from jaxres.errors import InputError
from jaxres.runtime.environment import PACKAGES, describe_devices

# What may differ between two calls on one workdir: how long, how exactly, what is kept or shown, where the data lies.
MAY_CHANGE = {
  'train.epochs', 'train.patience', 'train.scan_steps', 'train.log_every_steps', 'train.eval_batch_size',
  'checkpoint.keep_latest', 'checkpoint.keep_best', 'data.data_dir', 'data.path', 'data.download',
  'tta.flip', 'tta.crop', 'tta.pad', 'train.shard_optimizer',
  'model.dtype', 'data.workers', 'data.max_bad', 'train.max_rollbacks', 'train.spike_factor',
}  # fmt: skip


def describe(config: Mapping[str, Any], step: int, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Return what a checkpoint was made by: config, seed, step, versions, devices, and how its data was split.

  Args:
    config: of the run.
    step: of the checkpoint.
    data: the content of ``data.json``, of which its digest is kept; None where there is none.
  """
  options = {section: dict(fields) for section, fields in config.items()}
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {
    'step': step,
    'seed': options.get('train', {}).get('seed'),
    'config': options,
    'config_sha256': digests.json_digest(options),
    'versions': {'jaxres': jaxres.__version__, 'python': platform.python_version()} | versions,
    'devices': describe_devices(),
  } | ({} if data is None else {'data_sha256': digests.json_digest(data), 'split_rule': data['split_rule']})


def check_made_by(about: Mapping[str, Any], config: Mapping[str, Any] | None, path: pathlib.Path) -> None:
  """Raise InputError where the checkpoint in ``path`` is not of a run of ``config``.

  Args:
    about: what it was made by, as ``describe`` says; empty where it is not known.
    config: of the run that it lies in, of any version of jaxres; None where it is not known.
    path: of the checkpoint.
  """
  if not (about.get('config') and config):
    return
  if changed := other_fields(about['config'], config):
    words = [
      f'{name} was {json.dumps(old):.100} there, and is {json.dumps(new):.100} in this run'
      for name, (old, new) in changed.items()
    ]
    change = config_lib.join_limited(words)
    fix = 'move it away, use the workdir that it is of, or put config.json back as jaxres wrote it'
    raise InputError(path, f'of another run: {change}', fix=fix)


def other_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Return the fields, as ``{'train.seed': (0, 1)}``, by which two configs cannot be of one run."""
  both = config_lib.complete(old), config_lib.complete(new)  # of an older jaxres: a new field is at its default
  changed = config_lib.differences(*both)
  return {name: values for name, values in changed.items() if name not in MAY_CHANGE}
