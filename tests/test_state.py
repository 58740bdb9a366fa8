import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxres.state import create, update_ema

VARIABLES = {'params': {'a': jnp.ones(3), 'b': jnp.zeros(2)}, 'batch_stats': {'mean': jnp.full(2, 5.0)}}


def test_a_state_keeps_no_average_unless_the_option_is_set() -> None:
  start = create(VARIABLES, optax.sgd(0.1))
  assert start.ema is None
  assert set(start.saved_fields) == {'step', 'params', 'batch_stats', 'opt_state'}
  assert update_ema(start, 0.9) is start
  kept = create(VARIABLES, optax.sgd(0.1), ema=True)
  assert set(kept.saved_fields) == {'step', 'params', 'batch_stats', 'opt_state', 'ema'}
  np.testing.assert_array_equal(kept.ema['batch_stats']['mean'], VARIABLES['batch_stats']['mean'])


@pytest.mark.parametrize('decay', [0.5, 0.9, 0.9999])
def test_the_average_is_the_definition(decay: float) -> None:
  current = create(VARIABLES, optax.sgd(0.1), ema=True)
  expected = {'a': np.ones(3), 'mean': np.full(2, 5.0)}
  for t in range(1, 200):
    a, mean = np.sin(t) + np.arange(3.0), np.cos(t) * np.ones(2)
    current = current.replace(step=jnp.int32(t), params={'a': jnp.asarray(a), 'b': jnp.zeros(2)})
    current = update_ema(current.replace(batch_stats={'mean': jnp.asarray(mean)}), decay)
    d = min(decay, (1 + t) / (10 + t))
    expected = {'a': d * expected['a'] + (1 - d) * a, 'mean': d * expected['mean'] + (1 - d) * mean}
  np.testing.assert_allclose(current.ema['params']['a'], expected['a'], rtol=1e-5)
  np.testing.assert_allclose(current.ema['batch_stats']['mean'], expected['mean'], rtol=1e-5, atol=1e-6)
  assert not np.asarray(current.ema['params']['b']).any()  # what does not move is left bit for bit
