"""What a device does in a second, measured: the limits that a training step is compared with."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxres.runtime.compiler import jit

MATMUL, COPY_BYTES = {'cpu': 2048}, {'cpu': 1 << 28}  # what is computed and copied; below, elsewhere
MATMUL_ELSEWHERE, COPY_BYTES_ELSEWHERE = 8192, 1 << 31


def measure(platform: str, dtype: Any) -> tuple[float, float]:
  """Return what the device does in a second, measured here: FLOPs of a matrix product, bytes of a copy.

  The bytes are those read and those written.
  """
  side = MATMUL.get(platform, MATMUL_ELSEWHERE)
  matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)  # a GPU takes less time for ones and zeros
  flops = 2 * side**3 / time_call(jit(jnp.matmul), matrix, matrix)
  size = COPY_BYTES.get(platform, COPY_BYTES_ELSEWHERE)
  array = jnp.ones(size // 4, jnp.float32)
  return flops, 2 * size / time_call(jit(lambda x: x + 1.0), array)


def time_call(function: Callable[..., jax.Array], *args: jax.Array, rounds: int = 5) -> float:
  """Return the least seconds that a call takes."""
  jax.block_until_ready(function(*args))
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - start)
  return min(times)
