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


@pytest.fixture
def mixed() -> np.ndarray:
  rng = np.random.default_rng(1)
  share = rng.uniform(size=(6, 1))
  return (share * np.eye(5)[rng.integers(0, 5, 6)] + (1 - share) * np.eye(5)[rng.integers(0, 5, 6)]).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_softmax_xent_of_distributions_and_its_gradient_are_torchs(batch, mixed: np.ndarray, smoothing: float) -> None:
  torch = pytest.importorskip('torch')
  x = torch.tensor(batch[0], requires_grad=True)
  each = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction='none')(x, torch.tensor(mixed))
  each.mean().backward()
  loss = losses.get('softmax_xent', label_smoothing=smoothing)
  np.testing.assert_allclose(loss(jnp.asarray(batch[0]), jnp.asarray(mixed)), each.detach().numpy(), rtol=1e-5)
  grad = jax.grad(lambda x: loss(x, jnp.asarray(mixed)).mean())(jnp.asarray(batch[0]))
  np.testing.assert_allclose(grad, x.grad.numpy(), atol=1e-7)


@pytest.mark.torch
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('soft', [False, True])
def test_sigmoid_xent_and_its_gradient_are_torchs(batch, mixed: np.ndarray, smoothing: float, soft: bool) -> None:
  torch = pytest.importorskip('torch')
  logits, label = batch[0] * 10, mixed if soft else batch[1]
  off = smoothing / 5  # timm: the off value, and 1 - smoothing + off where the label is
  target = off + (1 - smoothing) * (mixed if soft else np.eye(5)[label])
  x = torch.tensor(logits, requires_grad=True)
  expected = torch.nn.functional.binary_cross_entropy_with_logits(x, torch.tensor(target, dtype=torch.float32))
  expected.backward()
  loss = losses.get('sigmoid_xent', label_smoothing=smoothing)
  value, grad = jax.value_and_grad(lambda x: loss(x, jnp.asarray(label)).mean())(jnp.asarray(logits))
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  np.testing.assert_allclose(grad, x.grad.numpy(), atol=1e-7)


@pytest.mark.torch
def test_a_threshold_asks_for_both_classes_of_a_mixed_image(batch) -> None:
  torch = pytest.importorskip('torch')
  logits, target = batch[0], np.array([[0.7, 0.3, 0, 0, 0], [0.9, 0, 0, 0, 0.1]] * 3, np.float32)
  both = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]] * 3, np.float32)
  expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(both))
  loss = losses.get('sigmoid_xent', target_threshold=0.2)
  np.testing.assert_allclose(loss(jnp.asarray(logits), jnp.asarray(target)).mean(), expected.item(), rtol=1e-5)


@pytest.mark.parametrize('name', losses.LOSSES)
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_one_hot_targets_are_class_numbers(batch, name: str, smoothing: float) -> None:
  loss = losses.get(name, label_smoothing=smoothing)
  logits, label = map(jnp.asarray, batch)
  np.testing.assert_allclose(loss(logits, jax.nn.one_hot(label, 5)), loss(logits, label), rtol=1e-5)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_the_last_axis_is_reduced(name: str) -> None:
  logits, label = jnp.zeros((2, 3, 4, 7)), jnp.zeros((2, 3, 4), int)
  assert losses.LOSSES[name](logits, label).shape == (2, 3, 4)
  assert losses.LOSSES[name](logits, logits).shape == (2, 3, 4)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_nothing_is_smoothed_unless_the_option_is_set(batch, name: str) -> None:
  logits, label = map(jnp.asarray, batch)
  plain = losses.LOSSES[name](logits, label)
  target = jax.nn.one_hot(label, 5)
  each = {
    'softmax_xent': -(target * jax.nn.log_softmax(logits)).sum(-1),
    'sigmoid_xent': -(target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits)).mean(-1),
  }
  np.testing.assert_allclose(plain, each[name], rtol=1e-5)
  np.testing.assert_array_equal(losses.get(name)(logits, label), plain)


@pytest.mark.parametrize(('smoothing', 'threshold'), [(0.0, 0.25), (0.2, 0.25)])
def test_a_target_at_the_threshold_is_not_above_it(batch, smoothing: float, threshold: float) -> None:
  logits, target = jnp.asarray(batch[0]), np.float32([[0.25, 0.75, 0, 0, 0]] * 6)
  one = jnp.array([[0, 1, 0, 0, 0]] * 6, jnp.float32)
  loss = losses.get('sigmoid_xent', label_smoothing=smoothing, target_threshold=threshold)
  np.testing.assert_allclose(loss(logits, jnp.asarray(target)), losses.get('sigmoid_xent')(logits, one), rtol=1e-6)


def test_bad_input() -> None:
  for name in ('label_smoothing', 'target_threshold'):
    with pytest.raises(InputError, match=rf'train.{name}: expected a value in \[0, 1\), found -0.1'):
      losses.get('sigmoid_xent', **{name: -0.1})
  losses.get('sigmoid_xent', label_smoothing=0.999, target_threshold=0.999)
  with pytest.raises(InputError, match='train.target_threshold: expected a value in'):
    losses.get('sigmoid_xent', target_threshold=1.0)
  with pytest.raises(InputError, match="only train.loss='sigmoid_xent' has one"):
    losses.get('softmax_xent', target_threshold=0.2)
  with pytest.raises(InputError, match=r"train.loss: unknown loss 'softmax'; did you mean 'softmax_xent'\?"):
    losses.get('softmax')
  with pytest.raises(InputError, match='train.label_smoothing: expected a value'):
    losses.get('softmax_xent', label_smoothing=1.0)
