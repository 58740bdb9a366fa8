import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres.data import augment
from jaxres.errors import InputError


@pytest.fixture
def images() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (64, 8, 9, 3)).astype(np.uint8)


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
def test_pad_crop_is_numpys(images: np.ndarray, mode: str) -> None:
  offsets = np.stack([np.arange(64) % 7, np.arange(64) * 3 % 7], axis=1)
  found = jax.jit(augment.pad_crop, static_argnums=(2, 3))(images, offsets, 3, mode)
  padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode=mode)
  expected = [image[y : y + 8, x : x + 9] for image, (y, x) in zip(padded, offsets, strict=True)]
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, np.stack(expected))


def test_flip_is_numpys(images: np.ndarray) -> None:
  flip = np.arange(64) % 3 == 0
  found = augment.flip_left_right(jnp.asarray(images), jnp.asarray(flip))
  expected = [np.fliplr(image) if f else image for image, f in zip(images, flip, strict=True)]
  np.testing.assert_array_equal(found, np.stack(expected))


def test_offsets_cover_the_whole_range_evenly() -> None:
  offsets = np.asarray(augment.crop_offsets(jax.random.key(0), 20_000, 4))
  assert offsets.shape == (20_000, 2)
  for axis in (0, 1):
    counts = np.bincount(offsets[:, axis], minlength=9)
    assert len(counts) == 9
    assert ((counts - 20_000 / 9) ** 2 / (20_000 / 9)).sum() < 30  # chi-squared, 8 degrees: p < 0.0002


def test_normalize_is_the_definition(images: np.ndarray) -> None:
  mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
  found = augment.normalize(jnp.asarray(images), mean, std)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, (images / 255.0 - mean) / std, atol=1e-5)


def test_nothing_asked_for_changes_nothing(images: np.ndarray) -> None:
  np.testing.assert_array_equal(augment.make()(jax.random.key(0), jnp.asarray(images)), images)


def test_make_crops_and_flips_each_image_by_its_own_draw(images: np.ndarray) -> None:
  same = jnp.asarray(np.repeat(images[:1], 400, axis=0))
  out = np.asarray(augment.make(crop_pad=1, flip=True)(jax.random.key(1), same))
  padded = np.pad(images[0], ((1, 1), (1, 1), (0, 0)))
  crops = [padded[y : y + 8, x : x + 9] for y in range(3) for x in range(3)]
  possible = {c.tobytes() for crop in crops for c in (crop, np.fliplr(crop))}
  assert {image.tobytes() for image in out} == possible  # all 18, and nothing else


def test_the_same_key_gives_the_same_images(images: np.ndarray) -> None:
  transform = augment.make(crop_pad=2, flip=True)
  run = lambda seed: np.asarray(transform(jax.random.key(seed), jnp.asarray(images)))
  np.testing.assert_array_equal(run(0), run(0))
  assert not np.array_equal(run(0), run(1))


def test_bad_input() -> None:
  with pytest.raises(InputError, match='augment.crop_pad: expected pixels, 0 or more, found -1'):
    augment.make(crop_pad=-1)
