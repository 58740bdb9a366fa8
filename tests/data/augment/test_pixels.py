"""The operations on levels against Pillow, on images that show every level and on small, gray and flat ones."""

import colorsys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jaxres.data.augment import pixels
from jaxres.errors import InputError


def make_images() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  noise = lambda *shape: rng.integers(0, 256, shape).astype(np.uint8)
  y, x = np.mgrid[:40, :32]
  smooth = np.stack([y * 6, x * 7, 40 + y + x], axis=-1).astype(np.uint8)
  dull = (100 + noise(24, 24, 3) // 8).astype(np.uint8)
  return {
    'noise': noise(33, 30, 3),
    'smooth': smooth,
    'dull': dull,
    'flat': np.full((20, 20, 3), 77, np.uint8),
    'two levels': np.where(noise(20, 20, 3) < 30, 3, 250).astype(np.uint8),
    'tiny': noise(2, 3, 3),
    'one pixel': noise(1, 1, 3),
    'grey': noise(17, 19, 1),
  }


IMAGES = make_images()
FACTORS = [0.0, 0.1, 0.3, 0.9, 1.0, 1.1, 1.27, 1.9, 3.0]


def pillow(image: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
  gray = image.shape[-1] == 1
  return np.asarray(operation(Image.fromarray(image[..., 0] if gray else image))).reshape(image.shape)


@pytest.fixture(params=IMAGES, name='image')
def _image(request) -> np.ndarray:
  return IMAGES[request.param]


@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize('name', ['Brightness', 'Contrast', 'Color', 'Sharpness'])
def test_enhancements_are_pillows_bits(image: np.ndarray, name: str, factor: float) -> None:
  actual = jax.jit(getattr(pixels, name.lower()))(image, factor)
  assert actual.dtype == np.uint8
  np.testing.assert_array_equal(actual, pillow(image, lambda im: getattr(ImageEnhance, name)(im).enhance(factor)))


@pytest.mark.parametrize('factor', [0.3, 0.9, 1.1, 1.9, -0.4])
def test_blend_of_any_two_levels_is_pillows_bits(factor: float) -> None:
  a, b = np.mgrid[:256, :256].astype(np.uint8)
  expected = Image.blend(Image.fromarray(a), Image.fromarray(b), factor)
  actual = jax.jit(pixels.blend)(a[..., None], b[..., None], factor)
  np.testing.assert_array_equal(actual[..., 0], expected)


def test_gray_and_smooth_are_pillows_bits(image: np.ndarray) -> None:
  np.testing.assert_array_equal(
    pixels.smooth(jnp.asarray(image)), pillow(image, lambda im: im.filter(ImageFilter.SMOOTH))
  )
  gray = np.asarray(pixels.to_gray(jnp.asarray(image)))[..., 0]
  np.testing.assert_array_equal(gray, pillow(image, lambda im: im.convert('L').convert(im.mode))[..., 0])


@pytest.mark.parametrize('threshold', [0.0, 1.0, 93.5, 128.0, 255.0, 256.0])
def test_solarize_and_invert_are_pillows_bits(image: np.ndarray, threshold: float) -> None:
  expected = pillow(image, lambda im: ImageOps.solarize(im, threshold))
  np.testing.assert_array_equal(pixels.solarize(jnp.asarray(image), threshold), expected)
  np.testing.assert_array_equal(pixels.invert(jnp.asarray(image)), pillow(image, ImageOps.invert))


@pytest.mark.parametrize('bits', range(1, 9))
def test_posterize_is_pillows_bits(image: np.ndarray, bits: int) -> None:
  expected = pillow(image, lambda im: ImageOps.posterize(im, bits))
  np.testing.assert_array_equal(jax.jit(pixels.posterize)(image, bits), expected)


def test_equalize_is_pillows_bits(image: np.ndarray) -> None:
  np.testing.assert_array_equal(jax.jit(pixels.equalize)(image), pillow(image, ImageOps.equalize))


def test_autocontrast_is_the_exact_quotient_and_within_a_level_of_pillow(image: np.ndarray) -> None:
  actual = np.asarray(jax.jit(pixels.autocontrast)(image)).astype(int)
  levels = image.astype(int)
  low, high = levels.min((0, 1)), levels.max((0, 1))
  exact = np.where(high > low, (levels - low) * 255 // np.maximum(high - low, 1), levels)
  np.testing.assert_array_equal(actual, exact)
  over = actual - pillow(image, ImageOps.autocontrast)
  assert set(np.unique(over)) <= {0, 1}


def test_autocontrast_differs_from_pillow_only_where_the_quotient_is_complete() -> None:
  every = np.stack([np.clip(np.arange(256), low, high) for low in range(0, 250, 7) for high in range(low + 1, 256, 5)])
  ramps = every[:, None, :, None].astype(np.uint8)
  actual = np.asarray(jax.vmap(pixels.autocontrast)(ramps)).astype(int)
  over = actual - np.stack([pillow(ramp, ImageOps.autocontrast) for ramp in ramps])
  low, high = every.min(1)[:, None], every.max(1)[:, None]
  complete = (every - low) * 255 % (high - low) == 0
  assert set(np.unique(over[:, 0, :, 0][complete])) == {0, 1}
  assert not over[:, 0, :, 0][~complete].any()


@pytest.mark.parametrize('turn', [-0.5, -0.37, -0.1, 0.0, 0.02, 0.25, 1 / 3, 0.5])
def test_hue_is_that_of_colorsys_within_a_level(turn: float) -> None:
  for name in ('noise', 'smooth', 'dull', 'flat', 'two levels'):
    image = IMAGES[name]
    expected = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
      hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
      expected[place] = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
    away = np.asarray(jax.jit(pixels.hue)(image, turn)) - expected * 255
    assert np.abs(away).max() <= 0.501, name
  np.testing.assert_array_equal(pixels.hue(jnp.asarray(IMAGES['grey']), turn), IMAGES['grey'])


def test_color_wants_one_or_three_channels() -> None:
  with pytest.raises(InputError, match='color operations; expected images of 1 or 3 channels, found 4'):
    pixels.color(jnp.zeros((5, 5, 4), jnp.uint8), 0.5)


def test_jitter_draws_what_torchvision_draws() -> None:
  image = jnp.full((4000, 1, 1, 3), jnp.array([120, 100, 60], jnp.uint8))
  actual = np.asarray(pixels.random_jitter(jax.random.key(0), image, strengths=(0.5, 0, 0, 0)))
  assert (actual.min(), actual.max()) == (30, 179)  # 60 * 0.5, 120 * 1.5
  counts = np.histogram(actual[:, 0, 0, 0] / 120, bins=10, range=(0.5, 1.5))[0]
  assert ((counts - 400) ** 2 / 400).sum() < 30  # chi-squared, 9 degrees: p < 0.0005
  gray = np.asarray(pixels.random_jitter(jax.random.key(0), image, strengths=(0, 0, 2.0, 0)))
  assert (np.ptp(gray, axis=-1) < 3).any()  # saturation down to 0, never below
  turned = np.asarray(pixels.random_jitter(jax.random.key(0), image, strengths=(0, 0, 0, 0.5)))
  assert (turned.max(-1) == 120).all()
  assert set(turned.argmax(-1).ravel()) == {0, 1, 2}
