"""Compiler options of this machine, jit with them, and the cache of compiled programs."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax

from jaxres.runtime import onednn, xla_flags
from jaxres.runtime.environment import cache_dir

_deterministic = False  # of the process, as the cache directory is


def set_deterministic(wanted: bool) -> None:
  """Compile from now on for bitwise reproducible results, at the cost of speed on a GPU."""
  global _deterministic
  _deterministic = wanted


def compiler_options() -> dict[str, str | bool]:
  """Return the options for ``jax.jit(..., compiler_options=...)`` of this backend: correct sums, determinism.

  On a GPU sums by atomic additions, and the choice of an algorithm by how fast it was once, change the last bits from
  run to run; ``set_deterministic`` leaves out both. Programs for CPUs have neither, and are compiled without YNNPACK.
  oneDNN computes their convolutions where ``XLA_FLAGS`` ask for it: see ``onednn``.
  """
  if jax.default_backend() in ('gpu', 'cuda', 'rocm') and _deterministic:
    return {'xla_gpu_deterministic_ops': True}
  return dict(_cpu_options())


@functools.cache
def _cpu_options() -> dict[str, str | bool]:
  """Return the options that keep YNNPACK out of a program, unless the user's ``XLA_FLAGS`` ask for it.

  Where XLA:CPU fuses a product or a convolution with a constant into a sum, YNNPACK returns wrong values, and it is
  slower than Eigen on convolutions. Empty on other backends, and of options that jaxlib does not know.
  """
  if jax.default_backend() != 'cpu':
    return {}
  options: dict[str, str | bool] = {} if xla_flags.read_ynnpack_flag() else {xla_flags.YNNPACK: ''}
  return options if _is_known(options) else {}


def _is_known(options: dict[str, str | bool]) -> bool:
  """Return whether jaxlib takes ``options``."""
  try:
    jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:  # "No such compile option" or "Invalid value"
    return False
  return True


def onednn_dtypes() -> frozenset[str]:
  """Return the names of the dtypes whose convolutions oneDNN computes in programs with ``compiler_options()``."""
  return onednn.find_dtypes(_cpu_options()) if jax.default_backend() == 'cpu' else frozenset()


def jit(function: Callable[..., Any], *, runs_once: bool = False, **kwargs: Any) -> Any:
  """Return ``jax.jit`` of ``function`` with ``compiler_options()``, which are computed at its first call.

  So it may decorate a function of a module, whose import starts no JAX. Inside another program it is a part of that:
  JAX takes the options of the outermost alone.

  Args:
    function: to compile.
    runs_once: on a CPU compile in a quarter of the time, which one run does not win back; the bits are equal.
    **kwargs: other arguments of ``jax.jit``.
  """

  @functools.cache
  def make() -> Any:
    is_quick = runs_once and jax.default_backend() == 'cpu'
    options: dict[str, Any] = compiler_options() | ({'xla_backend_optimization_level': 1} if is_quick else {})
    return jax.jit(function, compiler_options=options, **kwargs)

  @functools.wraps(function)
  def run(*args: Any, **named: Any) -> Any:
    is_inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, named)))
    return function(*args, **named) if is_inside else make()(*args, **named)

  run.lower = lambda *args, **named: make().lower(*args, **named)  # type: ignore[attr-defined]
  return run


def enable_compilation_cache() -> None:
  """Make JAX keep what it compiles in the user's cache directory, for this run and later ones.

  Nothing changes where JAX was told already where to keep it (``JAX_COMPILATION_CACHE_DIR``), or where the directory
  cannot be written. A CPU's programs use its instruction set: each kind of CPU has its own directory.
  """
  if jax.config.values['jax_compilation_cache_dir'] is not None:
    return
  directory = cache_dir('programs') / hashlib.sha256(onednn.processor().encode()).hexdigest()[:16]
  with contextlib.suppress(OSError):
    directory.mkdir(parents=True, exist_ok=True)
    if os.access(directory, os.W_OK):
      jax.config.update('jax_compilation_cache_dir', str(directory))
