"""The environment of a run: versions, devices, the cache directory."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import tempfile
from typing import Any

import jax

import jaxres


def cache_dir(kind: str) -> pathlib.Path:
  """Return where files that can be made again are kept: ``$XDG_CACHE_HOME/jaxres/KIND``, by default in ``~/.cache``.

  Where there is no home directory it is one for this process alone: what others can write holds no programs.
  """
  try:
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'jaxres' / kind
  except RuntimeError:
    return pathlib.Path(_cache_of_process().name) / kind


@functools.cache
def _cache_of_process() -> tempfile.TemporaryDirectory[str]:
  """Return a directory that is deleted when the process ends."""
  return tempfile.TemporaryDirectory(prefix='jaxres-', ignore_cleanup_errors=True)


PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def describe_devices() -> list[str]:
  """Return how many devices of which kind a run uses, and how many processes."""
  return [f'{jax.device_count()} x {jax.devices()[0].device_kind}', f'{jax.process_count()} processes']


def describe_environment() -> dict[str, Any]:
  """Return versions, devices and platform, by name."""
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {name: importlib.metadata.version(name) for name in packages}
  devices = {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'processes': jax.process_count()}
  system = {'python': platform.python_version(), 'platform': platform.platform(), 'cpus': os.cpu_count()}
  return {'jaxres': jaxres.__version__} | versions | devices | system
