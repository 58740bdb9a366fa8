"""What this machine and its compiler want: number formats, compiler options, what makes XLA:CPU fast."""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxres import xla_flags
from jaxres.errors import InputError, nearest

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}
EXHAUSTED = ('RESOURCE_EXHAUSTED: ', 'INTERNAL: YNNPACK operation failed')  # the latter: an evaluation on a CPU


def resolve_dtype(name: str) -> jnp.dtype:
  """Return the compute dtype called ``name``.

  Args:
    name: ``'float32'``, ``'bfloat16'``, ``'float16'``, or ``'auto'``: bfloat16 on GPU and TPU, float32 on CPU, where
      XLA gains nothing from bfloat16.

  Raises:
    InputError: ``name`` is none of these.
  """
  if name == 'auto':
    return jnp.dtype(jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16)
  if name not in DTYPES:
    raise InputError(f'model.dtype: unknown dtype {name!r}{nearest(name, [*DTYPES, "auto"])}')
  return jnp.dtype(DTYPES[name])


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


_deterministic = False  # of the process, as the cache directory is


def be_deterministic(wanted: bool) -> None:
  """Make what is compiled from now on give the same bits every time, at the cost of speed on a GPU."""
  global _deterministic
  _deterministic = wanted


def compiler_options() -> dict[str, str | bool]:
  """Return the options for ``jax.jit(..., compiler_options=...)`` that are wanted here: right sums, determinism.

  On a GPU sums by atomic additions, and the choice of an algorithm by how fast it was once, change the last bits from
  run to run; ``be_deterministic`` leaves out both. Programs for CPUs have neither, and are compiled without YNNPACK.
  """
  if jax.default_backend() in ('gpu', 'cuda', 'rocm') and _deterministic:
    return {'xla_gpu_deterministic_ops': True}
  return dict(_cpu_options())


@functools.cache
def _cpu_options() -> dict[str, str | bool]:
  """Return the options that keep YNNPACK out of a program, unless the user's ``XLA_FLAGS`` ask for it.

  Where XLA:CPU fuses a product or a convolution with a constant into a sum, YNNPACK returns anything, and it loses to
  Eigen on convolutions besides. Empty on other backends, and on a jaxlib that does not know the option.
  """
  if jax.default_backend() != 'cpu' or xla_flags.chosen():
    return {}
  options: dict[str, str | bool] = {xla_flags.YNNPACK: ''}
  try:
    jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:  # "No such compile option" or "Invalid value"
    return {}
  return options


def jit(function: Callable[..., Any], **kwargs: Any) -> Any:
  """Return ``jax.jit`` of ``function`` with ``compiler_options()``, which are asked for at its first call.

  So it may decorate a function of a module, whose import starts no JAX. Inside another program it is a part of that:
  JAX takes the options of the outermost alone.

  Args:
    function: as of ``jax.jit``.
    **kwargs: others of ``jax.jit``.
  """
  make = functools.cache(lambda: jax.jit(function, compiler_options=compiler_options(), **kwargs))

  @functools.wraps(function)
  def run(*args: Any, **named: Any) -> Any:
    is_inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, named)))
    return function(*args, **named) if is_inside else make()(*args, **named)

  run.lower = lambda *args, **named: make().lower(*args, **named)  # type: ignore[attr-defined]
  return run


def wants_cpu_forms() -> bool:
  """Return whether hand-written gradients of layers are faster here: on XLA:CPU, of whatever jaxlib.

  They ask for no option. What they avoid, XLA's own weight gradient in a loop, was as slow on every jaxlib tried.
  """
  return jax.default_backend() == 'cpu'


def materialize(x: jax.Array, anchor: jax.Array) -> jax.Array:
  """Return ``x``, and make XLA:CPU write it, and its gradient, to memory here.

  XLA:CPU fuses the chain that computes a convolution's input into each transpose that a weight gradient reads it
  through, and so computes the chain back to the stem again, in a strided loop: more than half of the step of a thin
  ResNet. It drops ``optimization_barrier`` before it fuses, but it never repeats a division, so this divides by a one
  that it cannot fold. The values do not change; other backends get ``x`` as it is.

  Args:
    x: float array of any shape.
    anchor: any finite float array; its first element is where the one comes from.
  """
  if jax.default_backend() != 'cpu':
    return x
  one = 1.0 + 0.0 * jax.lax.stop_gradient(anchor).ravel()[0]
  return x / one.astype(x.dtype)  # its gradient is a division too


def keep_programs() -> None:
  """Make JAX keep what it compiles in the user's cache directory, for this run and later ones.

  Nothing changes where JAX was told already where to keep it (``JAX_COMPILATION_CACHE_DIR``), or where the directory
  cannot be written. A CPU's programs are of its very instructions: each kind of CPU has a directory of its own.
  """
  if jax.config.values['jax_compilation_cache_dir'] is not None:
    return
  directory = cache_dir('programs') / hashlib.sha256(_processor().encode()).hexdigest()[:16]
  with contextlib.suppress(OSError):
    directory.mkdir(parents=True, exist_ok=True)
    if os.access(directory, os.W_OK):
      jax.config.update('jax_compilation_cache_dir', str(directory))


def _processor() -> str:
  """Return what tells one kind of CPU from another."""
  with contextlib.suppress(OSError):
    flags = [line for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('flags')]
    return flags[0] if flags else platform.processor()
  return platform.processor()


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
