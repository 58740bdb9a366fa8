"""Compute dtypes by their names."""

import jax
import jax.numpy as jnp

from jaxres.errors import check_word
from jaxres.runtime.compiler import onednn_dtypes
from jaxres.runtime.onednn import processor

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}
BFLOAT16_ON_CPUS = False  # whether 'auto' may be bfloat16 on a CPU


def resolve_dtype(name: str) -> jnp.dtype:
  """Return the compute dtype called ``name``.

  Args:
    name: ``'float32'``, ``'bfloat16'``, ``'float16'``, or ``'auto'``: bfloat16 on GPU and TPU, and on a CPU that
      multiplies in it where ``BFLOAT16_ON_CPUS``; else float32.

  Raises:
    InputError: ``name`` is none of these.
  """
  check_word('model.dtype', name, [*DTYPES, 'auto'], 'dtype')
  if name == 'auto':
    name = 'float32' if jax.default_backend() == 'cpu' and not _has_fast_bfloat16() else 'bfloat16'
  return jnp.dtype(DTYPES[name])


def dtype_of_run(name: str) -> str:
  """Return the name of the dtype of a run whose config says ``name``.

  Newer runs say a dtype. Older ones say ``'auto'``, which was float32 on a CPU.
  """
  return name if name != 'auto' else 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'


def _has_fast_bfloat16() -> bool:
  """Return whether oneDNN computes convolutions of bfloat16 here, and not by those of float32."""
  if not BFLOAT16_ON_CPUS or 'bfloat16' not in onednn_dtypes():
    return False
  return not {'amx_bf16', 'avx512_bf16'}.isdisjoint(processor().split())
