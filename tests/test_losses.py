import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import losses
from jaxres.errors import InputError


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  return rng.normal(size=(6, 5)).astype(np.float32) * 4, rng.integers(0, 5, 6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.5])
def test_softmax_xent_is_the_definition(batch: tuple[np.ndarray, np.ndarray], smoothing: float) -> None:
  logits, label = batch
  log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
  target = np.eye(5)[label] * (1 - smoothing) + smoothing / 5
  loss = losses.get('softmax_xent', label_smoothing=smoothing)(jnp.asarray(logits), jnp.asarray(label))
  np.testing.assert_allclose(loss, -(target * log_p).sum(-1), rtol=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_softmax_xent_of_distributions_is_the_definition(
  batch: tuple[np.ndarray, np.ndarray], smoothing: float
) -> None:
  logits, label = batch
  share = np.random.default_rng(1).random((6, 1))
  mixed = share * np.eye(5)[label] + (1 - share) * np.eye(5)[label[::-1]]
  log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
  loss = losses.get('softmax_xent', label_smoothing=smoothing)
  target = mixed * (1 - smoothing) + smoothing / 5
  np.testing.assert_allclose(loss(jnp.asarray(logits), jnp.asarray(mixed)), -(target * log_p).sum(-1), rtol=1e-5)
  one_hot, integer = (loss(jnp.asarray(logits), jnp.asarray(x)) for x in (np.eye(5)[label], label))
  np.testing.assert_allclose(one_hot, integer, rtol=1e-6)


@pytest.mark.torch
def test_softmax_xent_and_its_gradient_are_torchs(batch: tuple[np.ndarray, np.ndarray]) -> None:
  torch = pytest.importorskip('torch')
  logits, label = batch
  x = torch.tensor(logits, requires_grad=True)
  expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(x, torch.tensor(label))
  expected.backward()
  loss = losses.get('softmax_xent', label_smoothing=0.1)
  value, grad = jax.value_and_grad(lambda x: loss(x, jnp.asarray(label)).mean())(jnp.asarray(logits))
  np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
  np.testing.assert_allclose(grad, x.grad.numpy(), atol=1e-7)


def test_the_last_axis_is_reduced() -> None:
  assert losses.softmax_xent(jnp.zeros((2, 3, 4, 7)), jnp.zeros((2, 3, 4), int)).shape == (2, 3, 4)


def test_bad_input() -> None:
  with pytest.raises(InputError, match=r"train.loss: unknown loss 'softmax'; did you mean 'softmax_xent'\?"):
    losses.get('softmax')
  with pytest.raises(InputError, match='train.label_smoothing: expected a fraction'):
    losses.get('softmax_xent', label_smoothing=1.0)
