"""Sums that XLA:CPU is known to get wrong, in silence, where YNNPACK makes them: `python -m jaxres.doctor.known_sums`.

Each program is compiled as JAX does by default, or with the options of jaxres; NumPy says in float64 what is right.
One of them ends the process of jaxlib 0.10.2, so this runs in a separate process, and prints a line a program.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxres.runtime import compiler, xla_flags

TOLERANCE = 1e-3  # relative; a wrong sum is off by at least 1 %, most by orders of magnitude
PATIENCE = 120  # seconds; one of them is known to hang on some processors


def _products(x: Any) -> Any:
  return jnp.sum(x @ jnp.ones((64, 64)))


def _squares(x: Any) -> Any:
  names = ('NHWC', 'HWIO', 'NHWC')
  y = jax.lax.conv_general_dilated(x, jnp.ones((1, 1, 32, 32)), (1, 1), 'VALID', dimension_numbers=names)
  return jnp.sum(y**2)


def _rows(x: Any) -> Any:
  return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)


def _rank_7(x: Any) -> Any:
  return jnp.sum(x * x[::-1], axis=3)


PROGRAMS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], Callable[[np.ndarray], Any]]] = {
  'sum of products with a constant': (_products, (4096, 64), lambda x: 64 * x.sum()),
  'sum of squares of a convolution': (_squares, (4, 32, 32, 32), lambda x: 32 * (x.sum(-1) ** 2).sum()),
  'sums over rows (jax#39103)': (_rows, (40_000, 3), lambda x: (x**2).sum(1)),
  'sum over an axis of seven (jax#40412)': (_rank_7, (3, 1, 2, 2, 8, 8, 8), lambda x: (x * x[::-1]).sum(3)),
}


def main(with_options: bool) -> None:
  """Run the programs, one by one, and print for each a JSON list of its name and whether its sum is right."""
  for name, (function, shape, right) in PROGRAMS.items():
    x = np.random.default_rng(0).normal(1.0, 1.0, shape).astype(np.float32)
    jit = compiler.jit if with_options else jax.jit
    expected = right(x.astype(np.float64))
    near = np.abs(np.asarray(jit(function)(x)) - expected).max() <= TOLERANCE * np.abs(expected).max()  # not where NaN
    print(json.dumps([name, bool(near)]), flush=True)


@functools.cache
def find_wrong(with_options: bool) -> list[str]:
  """Return the programs whose sums are wrong, or that end the process; they run in a separate one.

  Args:
    with_options: compile as jaxres does, not as JAX does by default.
  """
  environment = dict(os.environ, JAX_PLATFORMS='cpu')
  if not with_options:
    environment['XLA_FLAGS'] = environment.get('XLA_FLAGS', '').replace(f'--{xla_flags.YNNPACK}= ', ' ')
    environment['XLA_FLAGS'] = environment['XLA_FLAGS'].removesuffix(f'--{xla_flags.YNNPACK}=')
  command = [sys.executable, '-m', 'jaxres.doctor.known_sums', *['--with_options'] * with_options]
  try:
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE).stdout
  except subprocess.TimeoutExpired as error:
    lines = (error.stdout or b'').decode()
  right = dict(json.loads(line) for line in lines.splitlines() if line.startswith('['))
  return [name for name in PROGRAMS if not right.get(name)]


if __name__ == '__main__':
  main('--with_options' in sys.argv)
