"""What the tests of weights need."""

import numpy as np
import pytest

from tests.models.conftest import full_precision, reference  # noqa: F401


@pytest.fixture
def tiny_state(tiny) -> dict[str, np.ndarray]:
  """The state dict of the network `tiny`, torchvision's names, random."""
  return make_state(classes=4)


def make_state(classes: int, channels: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
  """Return the state dict of one basic block of 8 channels with a CIFAR stem, as torch names it."""
  rng = np.random.default_rng(seed)
  state: dict[str, np.ndarray] = {}
  for conv, bn, inputs in (
    ('conv1', 'bn1', channels),
    ('layer1.0.conv1', 'layer1.0.bn1', 8),
    ('layer1.0.conv2', 'layer1.0.bn2', 8),
  ):
    state[f'{conv}.weight'] = rng.standard_normal((8, inputs, 3, 3), np.float32)
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      state[f'{bn}.{leaf}'] = rng.uniform(0.5, 1, 8).astype(np.float32)
    state[f'{bn}.num_batches_tracked'] = np.array(rng.integers(1, 1000), np.int64)
  state['fc.weight'] = rng.standard_normal((classes, 8), np.float32)
  state['fc.bias'] = rng.standard_normal(classes, np.float32)
  return state


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], ordered: bool = True) -> None:
  """Assert that two state dicts are the same: order, names, dtypes, shapes and bits."""
  assert ([*found] == [*expected]) if ordered else (sorted(found) == sorted(expected))
  for name, value in expected.items():
    assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
    assert found[name].tobytes() == value.tobytes(), name
