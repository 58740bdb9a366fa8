"""Host and device memory."""

import contextlib
import ctypes
import pathlib
import sys
from collections.abc import Iterator

import jax

from jaxres.errors import InputError

EXHAUSTED = ('RESOURCE_EXHAUSTED: ', 'INTERNAL: YNNPACK operation failed')  # the latter: an evaluation on a CPU


def keep_freed_memory() -> None:
  """Make glibc's malloc keep what is freed, for the rest of the process; elsewhere do nothing.

  XLA:CPU allocates the hundreds of megabytes of a step's activations again each step, and malloc takes and returns
  them by mmap: tens of thousands of page faults a step, a fifth of its time. Call it before JAX starts its threads,
  which listing the devices does.
  """
  if not sys.platform.startswith('linux'):
    return
  try:
    mallopt = ctypes.CDLL('libc.so.6').mallopt
  except (OSError, AttributeError):  # another libc
    return
  m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # malloc.h
  for option, value in ((m_arena_max, 1), (m_mmap_threshold, 2**31 - 1), (m_trim_threshold, 2**31 - 1)):
    mallopt(option, value)


def free_memory() -> int | None:
  """Return the bytes that a program may take on each device: of a CPU the host's; None where nobody says."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in statistics:
    return int(statistics['bytes_limit'] - statistics.get('bytes_in_use', 0))
  try:
    lines = pathlib.Path('/proc/meminfo').read_text('ascii').splitlines()
  except OSError:
    return None
  available = [int(line.split()[1]) << 10 for line in lines if line.startswith('MemAvailable:')]
  return available[0] if available else None


@contextlib.contextmanager
def explain_oom(what: str, fix: str) -> Iterator[None]:
  """Turn a device's out-of-memory error into an InputError.

  JAX dispatches asynchronously: the context must enclose the first read of a result.

  Args:
    what: that needs the memory, such as ``'a step of 512 examples'``.
    fix: what to do about it.

  Raises:
    InputError: the memory of the device is too small.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition('\n')[0]
    if not reason.startswith(EXHAUSTED):
      raise
    problem = reason.partition(': ')[2].rstrip('.')
    raise InputError(what, f'the memory of the device is too small: {problem:.160}', fix=fix) from error
