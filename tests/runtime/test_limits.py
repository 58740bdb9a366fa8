"""What a device does in a second."""

import jax.numpy as jnp

from jaxres.runtime import limits


def test_limits_are_those_of_their_definition(monkeypatch) -> None:
  monkeypatch.setattr(limits, 'time_call', lambda function, *args: 0.5)
  flops, size = limits.measure('cpu', jnp.float32)
  assert flops == 2 * 2048**3 / 0.5
  assert size == 2 * 2**28 / 0.5
