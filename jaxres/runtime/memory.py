"""Host and device memory."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import jax

from jaxres.errors import InputError

EXHAUSTED = ('RESOURCE_EXHAUSTED: ', 'INTERNAL: YNNPACK operation failed')  # the latter: an evaluation on a CPU


def keep_freed_memory() -> None:
  """Make glibc's malloc keep what is freed, for the rest of the process; elsewhere do nothing.

  XLA:CPU allocates the hundreds of megabytes of a step's activations anew each step, and malloc takes and returns
  them by mmap: tens of thousands of page faults a step, a fifth of its time. Call it before JAX starts its threads,
  which asking for a device does.
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


@contextlib.contextmanager
def memory_explained(what: str, fix: str) -> Iterator[None]:
  """Turn a device's lack of memory for ``what``, such as ``'a step of 512 examples'``, into an InputError with ``fix``.

  JAX runs ahead of the devices: the context must end behind the first value that is asked of them.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition('\n')[0]
    if not reason.startswith(EXHAUSTED):
      raise
    found = reason.partition(': ')[2].rstrip('.')
    raise InputError(f'{what}: the memory of the device is too small: {found:.160}; {fix}') from error
