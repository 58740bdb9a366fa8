"""Compute dtypes by their names."""

import jax
import jax.numpy as jnp

from jaxres.errors import InputError, nearest

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}


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
