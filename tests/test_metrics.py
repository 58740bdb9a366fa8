import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from jaxres import metrics


def random_batch(size: int = 200, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(1)
  return rng.normal(size=(size, classes)).astype(np.float32), rng.integers(0, classes, size)


def test_top1_and_top5_are_scikit_learns() -> None:
  logits, label = random_batch()
  actual = metrics.compute_means(metrics.sums(jnp.ones(len(label)), jnp.asarray(logits), jnp.asarray(label)), 'test')
  for k in (1, 5):
    np.testing.assert_allclose(actual[f'test/top{k}'], top_k_accuracy_score(label, logits, k=k, labels=range(10)))


def test_rank_is_a_stable_sort_of_ties() -> None:
  logits = np.random.default_rng(2).integers(0, 3, (50, 7)).astype(np.float32)
  label = np.arange(50) % 7
  order = np.argsort(-logits, axis=-1, kind='stable')
  np.testing.assert_array_equal(
    metrics.label_rank(jnp.asarray(logits), jnp.asarray(label)), (order == label[:, None]).argmax(-1)
  )


def test_nan_is_never_a_hit() -> None:
  logits = jnp.array([[0.0, 1.0, jnp.nan], [jnp.nan] * 3, [5.0, jnp.nan, 0.0]])
  label = jnp.array([1, 0, 0])
  assert (metrics.label_rank(logits, label) >= 1).all()


def test_masked_rows_do_not_count() -> None:
  logits, label = map(jnp.asarray, random_batch())
  loss = jnp.arange(200.0)
  mask = jnp.arange(200) < 70
  complete = metrics.sums(loss.at[70:].set(jnp.nan), logits, label, mask)
  part = metrics.sums(loss[:70], logits[:70], label[:70])
  assert {name: float(v) for name, v in complete.items()} == {name: float(v) for name, v in part.items()}
  assert float(complete['count']) == 70


def test_of_a_distribution_the_heaviest_class_counts() -> None:
  logits, label = random_batch()
  mixed = 0.6 * np.eye(10)[label] + 0.4 * np.eye(10)[np.roll(label, 1)]
  actual, expected = (metrics.sums(jnp.ones(200), jnp.asarray(logits), jnp.asarray(x)) for x in (mixed, label))
  assert metrics.compute_means(actual, 'a') == metrics.compute_means(expected, 'a')


def test_merging_parts_is_the_complete() -> None:
  logits, label = map(jnp.asarray, random_batch())
  part = lambda s: metrics.sums(jnp.ones(200)[s], logits[s], label[s])
  merged = metrics.merge(part(slice(0, 90)), part(slice(90, 200)))
  assert metrics.compute_means(merged, 'a') == metrics.compute_means(part(slice(0, 200)), 'a')


@pytest.mark.parametrize(('classes', 'has_top5'), [(5, False), (6, True)])
def test_top5_is_left_out_where_every_class_would_be_a_hit(classes: int, has_top5: bool) -> None:
  logits = jnp.eye(classes)
  actual = metrics.compute_means(metrics.sums(jnp.ones(classes), logits, jnp.arange(classes)), 'val')
  assert actual == {'val/loss': 1.0, 'val/top1': 1.0} | ({'val/top5': 1.0} if has_top5 else {})


@pytest.mark.parametrize(('rank', 'top1', 'top5'), [(0, 1, 1), (1, 0, 1), (4, 0, 1), (5, 0, 0)])
def test_a_hit_is_among_the_first_or_the_first_five(rank: int, top1: int, top5: int) -> None:
  actual = metrics.sums(jnp.float32([3.0]), -jnp.arange(10.0)[None], jnp.array([rank]))
  assert metrics.label_rank(-jnp.arange(10.0)[None], jnp.array([rank])).tolist() == [rank]
  assert {name: float(value) for name, value in actual.items()} == {'loss': 3, 'top1': top1, 'top5': top5, 'count': 1}
  assert {value.dtype for value in actual.values()} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('name', 'expected'), [('val/loss', True), ('test/top1', True), ('train/loss', False), ('ema/val/top1', False)]
)
def test_an_evaluation_is_told_from_training(name: str, expected: bool) -> None:
  assert metrics.is_evaluation({'train/lr': 0.1, name: 0.5}) is expected
