"""Whether XLA:CPU hands convolutions to oneDNN here: it is tried, not guessed from versions.

jaxlib 0.11 and later hold Intel's library and a pass that turns convolutions into calls of it, behind an option. Which
ones it takes depends on the processor too: those of bfloat16 need AVX-512 with bfloat16, or AMX.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Mapping

import jax
import jaxlib.version
import numpy as np

from jaxres.runtime import xla_flags
from jaxres.runtime.environment import cache_dir

CALL = '__onednn$convolution'  # of a compiled program
DTYPES = ('float32', 'bfloat16', 'float16')
TRIAL = 1  # of ``_trial``: a change of it makes what was kept before worth nothing
Options = Mapping[str, str | bool]


def count_calls(program: str) -> int:
  """Return how many convolutions of the text of a compiled program are calls of oneDNN."""
  return program.count(f'custom_call_target="{CALL}"')


def find_dtypes(options: Options) -> frozenset[str]:
  """Return the names of the dtypes whose convolutions are calls of oneDNN, with right results, under ``options``.

  What was found is kept in the process, and in the user's cache directory for each jaxlib and kind of processor.

  Args:
    options: of ``jax.jit(..., compiler_options=...)``.
  """
  if xla_flags.ONEDNN not in options and xla_flags.read_ynnpack_flag(flag=xla_flags.ONEDNN) is None:
    return frozenset()  # it is off by default
  return _find_dtypes(tuple(sorted(options.items())), xla_flags.read_ynnpack_flag(flag=xla_flags.ONEDNN))


@functools.cache
def _find_dtypes(options: tuple[tuple[str, str | bool], ...], chosen: str | None) -> frozenset[str]:
  key = json.dumps([TRIAL, jaxlib.version.__version__, processor(), options, chosen])
  path = cache_dir('onednn') / f'{hashlib.sha256(key.encode()).hexdigest()[:16]}.json'
  known = _read(path)
  if known is None:
    known = frozenset(dtype for dtype in DTYPES if _works(dtype, dict(options)))
    _write(path, known)
  return known


def _works(dtype: str, options: Options) -> bool:
  """Return whether the convolutions of a forward pass and of a weight gradient are calls of oneDNN, and right."""
  rng = np.random.default_rng(0)
  x, kernel = (rng.integers(-1, 2, shape).astype(jax.numpy.dtype(dtype)) for shape in ((8, 6, 6, 16), (3, 3, 16, 16)))
  try:
    with jax.ensure_compile_time_eval():  # a program may be in the midst of its trace
      compiled = jax.jit(_trial, compiler_options=dict(options)).lower(x, kernel).compile()
      results = jax.device_get(compiled(x, kernel)) if count_calls(compiled.as_text() or '') == 2 else ()
  except jax.errors.JaxRuntimeError:  # "No such compile option"
    return False
  expected = _trial_by_numpy(x.astype(np.float64), kernel.astype(np.float64))
  same = [np.array_equal(ours.astype(np.float64), right) for ours, right in zip(results, expected, strict=False)]
  return len(same) == 2 and all(same)


def _trial(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return a convolution, and one over the batch in three dimensions, as of a weight gradient."""
  y = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  over_batch = x.transpose(1, 2, 3, 0)[None], x.transpose(1, 2, 0, 3)[:, :, None]
  padding = ((1, 1), (1, 1), (0, 0))
  names = ('NDHWC', 'DHWIO', 'NDHWC')
  return y, jax.lax.conv_general_dilated(*over_batch, (1, 1, 1), padding, dimension_numbers=names)[0]


def _trial_by_numpy(x: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return what ``_trial`` does; of small integers it is exact in each of ``DTYPES``."""
  height, width = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  patches = [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
  y = sum(patches[i][j] @ kernel[i, j] for i in range(3) for j in range(3))
  return y, np.array([[np.einsum('bhwc,bhwd->cd', patches[i][j], x) for j in range(3)] for i in range(3)])


def _read(path: pathlib.Path) -> frozenset[str] | None:
  """Return what ``_write`` wrote; None where it wrote nothing, or something else stands there."""
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  is_known = isinstance(content, list) and all(name in DTYPES for name in content)
  return frozenset(content) if is_known else None


def _write(path: pathlib.Path, dtypes: frozenset[str]) -> None:
  """Keep ``dtypes`` in ``path``, unless it cannot be written."""
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile('w', dir=path.parent, suffix='.part', delete=False) as file:
      json.dump(sorted(dtypes), file)
    os.replace(file.name, path)


def processor() -> str:
  """Return what tells one kind of CPU from another."""
  with contextlib.suppress(OSError):
    flags = [line for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('flags')]
    return flags[0] if flags else platform.processor()
  return platform.processor()
