import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres.data.augment import make, mixing

pytestmark = pytest.mark.eight_devices


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (64, 8, 10, 3)).astype(np.uint8), np.eye(5, dtype=np.float32)[np.arange(64) % 5]


def test_mixup_is_the_definition(batch) -> None:
  images, labels = batch
  weight = np.random.default_rng(1).random(64).astype(np.float32)
  actual, actual_labels = jax.jit(mixing.mixup)(images, labels, weight)
  assert actual.dtype == np.uint8
  for i in range(64):  # i - 1 of 0 is the last
    blended = weight[i] * images[i].astype(float) + (1 - weight[i]) * images[i - 1]
    assert np.abs(np.asarray(actual[i]) - blended).max() <= 0.5001
    np.testing.assert_allclose(actual_labels[i], weight[i] * labels[i] + (1 - weight[i]) * labels[i - 1], atol=1e-6)


def test_cutmix_is_the_definition(batch) -> None:
  images, labels = batch
  boxes = np.random.default_rng(1).integers([-3, -3, 0, 0], [8, 10, 9, 11], (64, 4)).astype(np.int32)
  actual, actual_labels = jax.jit(mixing.cutmix)(images, labels, boxes)
  for i, (top, left, height, width) in enumerate(boxes):
    pasted, inside = images[i].copy(), np.zeros((8, 10), bool)
    inside[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    pasted[inside] = images[i - 1][inside]
    np.testing.assert_array_equal(actual[i], pasted)
    kept = 1 - inside.mean()
    np.testing.assert_allclose(actual_labels[i], kept * labels[i] + (1 - kept) * labels[i - 1], atol=1e-6)


def test_cutmix_boxes_are_torchvisions() -> None:
  weight = np.random.default_rng(1).random(3000).astype(np.float32)
  boxes = np.asarray(mixing.draw_boxes(jax.random.key(0), jnp.asarray(weight), 20, 30))
  half = (0.5 * np.sqrt(1 - weight)[:, None] * [20, 30]).astype(int)
  assert (boxes[:, 2:] == 2 * half).mean() > 0.999  # but for float32
  centers = boxes[:, :2] + boxes[:, 2:] // 2
  for axis, size in ((0, 20), (1, 30)):
    counts = np.bincount(centers[:, axis], minlength=size)
    assert len(counts) == size
    assert ((counts - 3000 / size) ** 2 / (3000 / size)).sum() < 70  # chi-squared, 29 degrees: p < 0.0001


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_shares_are_drawn_from_beta(alpha: float) -> None:
  images, labels = np.zeros((4000, 1, 1, 1), np.uint8), np.eye(2, dtype=np.float32)[np.arange(4000) % 2]
  _, mixed = make(mixup=alpha).mix(jax.random.key(0), jnp.asarray(images), jnp.asarray(labels))
  share = np.asarray((mixed * labels).sum(-1))
  assert abs(share.mean() - 0.5) < 0.02
  assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
  np.testing.assert_allclose(np.asarray(mixed).sum(-1), 1, atol=1e-6)


def test_with_both_each_image_gets_one_of_the_two(batch) -> None:
  images = np.repeat(np.array([[[[0]]], [[[200]]]], np.uint8), 16, 1).repeat(16, 2).reshape(2, 16, 16, 1)
  images = np.tile(images, (500, 1, 1, 1))
  labels = np.eye(2, dtype=np.float32)[np.arange(1000) % 2]
  actual, mixed = make(mixup=1.0, cutmix=1.0).mix(jax.random.key(0), jnp.asarray(images), jnp.asarray(labels))
  actual = np.asarray(actual)
  pasted = np.isin(actual, (0, 200)).all((1, 2, 3))
  assert 0.4 < pasted.mean() < 0.6
  shades = actual.reshape(1000, -1) / 200
  assert (np.ptp(shades[~pasted], axis=1) == 0).all()
  np.testing.assert_allclose(shades.mean(1), mixed[:, 1], atol=0.003)  # the label is the share of white, either way


def test_nothing_asked_for_is_none() -> None:
  assert make(crop_pad=1).mix is None


def test_mixing_is_the_same_on_any_number_of_devices(batch) -> None:
  images, labels = map(jnp.asarray, batch)
  mix = jax.jit(make(mixup=0.3, cutmix=1.0).mix)
  mesh = jax.sharding.Mesh(jax.devices(), ('data',))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  one = mix(jax.random.key(3), images, labels)
  eight = mix(jax.random.key(3), *jax.device_put((images, labels), split))
  for a, b in zip(one, eight, strict=True):
    np.testing.assert_array_equal(a, b)
