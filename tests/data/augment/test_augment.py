import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres.data import augment, types
from jaxres.errors import InputError
from jaxres.runtime import sharding

pytestmark = pytest.mark.eight_devices


@pytest.fixture
def images() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (64, 8, 9, 3)).astype(np.uint8)


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
def test_pad_crop_is_numpys(images: np.ndarray, mode: str) -> None:
  offsets = np.stack([np.arange(64) % 7, np.arange(64) * 3 % 7], axis=1)
  actual = jax.jit(augment.pad_crop, static_argnums=(2, 3))(images, offsets, 3, mode)
  padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode=mode)
  expected = [image[y : y + 8, x : x + 9] for image, (y, x) in zip(padded, offsets, strict=True)]
  assert actual.dtype == np.uint8
  np.testing.assert_array_equal(actual, np.stack(expected))


def test_flip_is_numpys(images: np.ndarray) -> None:
  flip = np.arange(64) % 3 == 0
  actual = augment.flip_left_right(jnp.asarray(images), jnp.asarray(flip))
  expected = [np.fliplr(image) if f else image for image, f in zip(images, flip, strict=True)]
  np.testing.assert_array_equal(actual, np.stack(expected))


def test_offsets_cover_the_complete_range_evenly() -> None:
  offsets = np.asarray(augment.crop_offsets(jax.random.key(0), 20_000, 4))
  assert offsets.shape == (20_000, 2)
  for axis in (0, 1):
    counts = np.bincount(offsets[:, axis], minlength=9)
    assert len(counts) == 9
    assert ((counts - 20_000 / 9) ** 2 / (20_000 / 9)).sum() < 30  # chi-squared, 8 degrees: p < 0.0002


def test_normalize_is_the_definition(images: np.ndarray) -> None:
  mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
  actual = augment.normalize(jnp.asarray(images), mean, std)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, (images / 255.0 - mean) / std, atol=1e-5)


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


EVERYTHING = dict(
  resized_crop=(0.3, 1.0), rotate=20.0, jitter=(0.4, 0.4, 0.4, 0.1), policy='randaugment', erase=0.5, cutout=3
)


def test_new_steps_leave_the_draws_of_crop_and_flip_alone(images: np.ndarray) -> None:
  rng = jax.random.key(7)
  crop_rng, flip_rng = jax.random.split(rng)  # the draws of the first release: older runs continue
  cropped = augment.pad_crop(jnp.asarray(images), augment.crop_offsets(crop_rng, 64, 2), 2, 'reflect')
  expected = augment.flip_left_right(cropped, jax.random.bernoulli(flip_rng, shape=(64,)))
  np.testing.assert_array_equal(augment.make(crop_pad=2, pad_mode='reflect', flip=True)(rng, images), expected)
  cut = augment.make(crop_pad=2, pad_mode='reflect', flip=True, cutout=3)(rng, images)
  kept = (np.asarray(cut) != 0).all(-1)
  np.testing.assert_array_equal(np.asarray(cut)[kept], np.asarray(expected)[kept])


@pytest.mark.parametrize('field', EVERYTHING)
def test_each_step_changes_most_images_and_each_by_its_own_draw(images: np.ndarray, field: str) -> None:
  same = jnp.asarray(np.repeat(images[:1], 64, axis=0))
  out = np.asarray(jax.jit(augment.make(**{field: EVERYTHING[field]}).images)(jax.random.key(0), same))
  assert (out.dtype, out.shape) == (np.uint8, images.shape[:1] + images.shape[1:])
  assert (out != images[0]).any((1, 2, 3)).mean() > 0.3
  assert len({image.tobytes() for image in out}) > 15


def test_everything_is_the_same_on_any_number_of_devices(images: np.ndarray) -> None:
  transform = augment.make(crop_pad=2, flip=True, **EVERYTHING)
  split = sharding.batch_sharding(sharding.make_mesh())
  run = jax.jit(transform.images)
  one, eight = (run(jax.random.key(1), jax.device_put(images, where)) for where in (jax.devices()[0], split))
  assert eight.sharding.is_equivalent_to(split, 4)
  np.testing.assert_array_equal(one, eight)
  assert (np.asarray(one) != images).any((1, 2, 3)).all()


@pytest.mark.parametrize('fields', [dict(rotate=90.0), dict(cutout=4), dict(erase=1.0)])
def test_fill_is_the_level_of_what_is_empty(fields: dict) -> None:
  images = jnp.full((32, 9, 12, 3), 200, jnp.uint8)
  out = np.asarray(augment.make(fill=124, **fields)(jax.random.key(0), images))
  assert set(np.unique(out)) == {124, 200}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(crop_pad=-1), 'augment.crop_pad: expected pixels, 0 or more, found -1'),
    (dict(cutout=-2), r'augment.cutout: expected pixels, a value in \[0, 2147483648\), found -2'),
    (dict(resized_crop=(0.5,)), r'augment.resized_crop: expected two shares of the area, .* found \(0.5,\)'),
    (dict(resized_crop=(0.9, 0.2)), 'augment.resized_crop: expected two shares'),
    (dict(resized_crop=(0.0, 1.0)), 'augment.resized_crop: expected two shares'),
    (dict(jitter=(0.4,)), 'augment.jitter: expected brightness, contrast, saturation .* and hue'),
    (dict(jitter=(0.4, 0.4, 0.4, 0.6)), 'augment.jitter: expected'),
    (dict(rotate=-3.0), r'augment.rotate: expected a value in \[0, 180\], found -3.0'),
    (dict(erase=1.5), r'augment.erase: expected a value in \[0, 1\], found 1.5'),
    (dict(fill=256), r'augment.fill: expected a value in \[0, 255\], found 256'),
    (dict(randaugment_magnitude=31), r'augment.randaugment_magnitude: expected a value in \[0, 30\], found 31'),
    (dict(randaugment_layers=-1), r'augment.randaugment_layers: expected a value in \[0, 16\]'),
    (dict(mixup=-0.1), r'augment.mixup: expected a value in \[0, 1000\]'),
    (dict(cutmix=float('nan')), r'augment.cutmix: expected a value in \[0, 1000\], found nan'),
    (dict(policy='rand'), "augment.policy: unknown value 'rand'"),
  ],
)
def test_bad_input(fields: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    augment.make(**fields)


@pytest.mark.parametrize('shape', [(8, 20, 3), (20, 8, 3)])
@pytest.mark.parametrize('mode', ['constant', 'reflect'])
def test_a_crop_has_something_of_the_image(shape: tuple[int, int, int], mode: str) -> None:
  labels = types.CLASSES
  augment.check(augment.make(crop_pad=7, pad_mode=mode), shape, labels)
  with pytest.raises(InputError, match=r'augment.crop_pad: expected pixels, less than 8, found 8'):
    augment.check(augment.make(crop_pad=8, pad_mode=mode), shape, labels)
