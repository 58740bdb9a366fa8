"""Checks of the machine: devices, versions, memory, disk."""

import contextlib
import importlib.metadata
import os
import pathlib
import shutil
from typing import Literal

import jax
import jax.extend
import jaxlib.version
import packaging.requirements
import packaging.version

from jaxres.doctor import known_sums
from jaxres.doctor.check import Check, Checks
from jaxres.runtime import xla_flags
from jaxres.runtime.compiler import onednn_dtypes

ONEDNN_SINCE = (0, 11)  # of jaxlib
MIN_FREE_BYTES = 1 << 30  # of a disk; a warning below it


def check_machine() -> Checks:
  """Check devices, versions, memory, the compile cache and the disk."""
  try:
    devices = jax.devices()
  except RuntimeError as error:
    yield Check('devices', 'problem', f'JAX finds none: {" ".join(str(error).split()):.300}')
    return
  kind = f'{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), {os.cpu_count()} CPU cores'
  gpu = shutil.which('nvidia-smi') and jax.default_backend() == 'cpu'
  yield Check(
    'devices', *(('problem', f'{kind}, but there is an NVIDIA GPU: install jax[cuda12]') if gpu else ('ok', kind))
  )
  yield from check_versions()
  yield from check_memory(devices[0])
  yield check_sums()
  if jax.default_backend() == 'cpu':
    yield check_convolutions()
  yield check_cache()
  yield check_disk(pathlib.Path.cwd())


def check_versions() -> Checks:
  """Check the versions that must fit together."""
  ours, lib = jax.__version__, jaxlib.version.__version__
  fits = packaging.version.parse(ours).release[:2] == packaging.version.parse(lib).release[:2]
  fix = '' if fits else ': they must be of one release; install both again'
  yield Check('jax, jaxlib', 'ok' if fits else 'problem', f'{ours}, {lib}{fix}')
  for requirement in importlib.metadata.requires('jaxres') or ():
    needed = packaging.requirements.Requirement(requirement)
    if needed.marker and not needed.marker.evaluate({'extra': ''}):
      continue
    try:
      installed = importlib.metadata.version(needed.name)
    except importlib.metadata.PackageNotFoundError:
      yield Check(needed.name, 'problem', f'not installed; jaxres needs {needed.name}{needed.specifier}')
      continue
    if not needed.specifier.contains(installed, prereleases=True):
      yield Check(needed.name, 'warning', f'{installed}; jaxres is made for {needed.specifier}')
  if jax.default_backend() != 'cpu':
    yield Check('platform', 'ok', ' '.join(jax.extend.backend.get_backend().platform_version.split()))
    for package in ('nvidia-cudnn-cu12', 'nvidia-cuda-runtime-cu12', 'jax-cuda12-plugin'):
      with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        yield Check(package, 'ok', importlib.metadata.version(package))


def check_memory(device: jax.Device) -> Checks:
  """Check the memory of the host and of a device."""
  with contextlib.suppress(OSError, ValueError, KeyError):
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    kilobytes = {line.split(':')[0]: int(line.split()[1]) for line in lines}
    free, total = kilobytes['MemAvailable'] / 1e6, kilobytes['MemTotal'] / 1e6
    verdict: Literal['ok', 'warning'] = 'ok' if free > 1 else 'warning'
    yield Check('memory', verdict, f'{free:.1f} of {total:.1f} GB are free')
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats and 'bytes_limit' in stats:
    limit, used = stats['bytes_limit'] / 1e9, stats['bytes_in_use'] / 1e9
    yield Check('device memory', 'ok', f'{limit - used:.1f} of {limit:.1f} GB are free for JAX')


def check_sums() -> Check:
  """Check whether XLA:CPU sums correctly, by default and as jaxres compiles, by programs known to be wrong."""
  lib, total = f'jaxlib {jaxlib.version.__version__} on a CPU', len(known_sums.PROGRAMS)
  if wrong := known_sums.find_wrong(with_options=True):
    user = ' (XLA_FLAGS ask for YNNPACK: leave that out)' if xla_flags.read_ynnpack_flag() else ''
    return Check('sums', 'problem', f'{lib}: wrong, or ends the process, as jaxres compiles{user}: {"; ".join(wrong)}')
  wrong = known_sums.find_wrong(with_options=False)
  if not wrong:
    return Check('sums', 'ok', f'{lib}: {total} of {total} known programs are right')
  finding = f'{lib}: {len(wrong)} of {total} known programs are wrong or end the process by default'
  return Check('sums', 'ok', f'{finding}; jaxres compiles without YNNPACK, and all are right')


def check_convolutions() -> Check:
  """Look at what computes convolutions on this CPU."""
  dtypes = onednn_dtypes()
  if dtypes:
    return Check('convolutions', 'ok', f'by oneDNN, in {", ".join(sorted(dtypes))}')
  reason = f'jaxlib {jaxlib.version.__version__} hands none to oneDNN here'
  if jaxlib.version.__version_info__ < ONEDNN_SINCE:
    reason += '; jaxlib 0.11 or newer, for Python 3.12 or newer, can'
  return Check('convolutions', 'ok', f"by XLA's Eigen: {reason}")


def check_cache() -> Check:
  """Check the cache of compiled programs."""
  directory = jax.config.values['jax_compilation_cache_dir']
  if directory is None:
    fix = 'set XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR to a directory that can be written'
    return Check('compile cache', 'warning', f'none, so that every run compiles again: {fix}')
  try:
    files = [path for path in pathlib.Path(directory).iterdir() if path.name.endswith('-cache') and path.is_file()]
  except FileNotFoundError:
    files = []  # nothing was compiled yet
  except OSError as error:
    return Check('compile cache', 'warning', f'{directory}: {error.strerror}, so that every run compiles again')
  return Check('compile cache', 'ok', f'{directory}: {len(files)} programs, {_megabytes(files)}')


def check_disk(directory: pathlib.Path) -> Check:
  """Check the free space on the disk of ``directory``."""
  free = shutil.disk_usage(directory).free
  verdict: Literal['ok', 'warning'] = 'ok' if free > MIN_FREE_BYTES else 'warning'
  return Check('disk', verdict, f'{free / 1e9:,.1f} GB are free in {directory}')


def _megabytes(files: list[pathlib.Path]) -> str:
  return f'{sum(path.stat().st_size for path in files) / 1e6:,.0f} MB'
