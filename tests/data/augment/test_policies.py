"""RandAugment and TrivialAugment against Pillow, operation by operation, and torchvision's published magnitudes."""

import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxres.data.augment import policies


def move(image: Image.Image, *coefficients: float) -> Image.Image:
  return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)


# As torchvision.transforms.autoaugment applies them to a PIL image.
PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
  'Identity': lambda im, m: im,
  'ShearX': lambda im, m: move(im, 1, math.tan(math.atan(m)), 0, 0, 1, 0),
  'ShearY': lambda im, m: move(im, 1, 0, 0, math.tan(math.atan(m)), 1, 0),
  'TranslateX': lambda im, m: move(im, 1, 0, -int(m), 0, 1, 0),
  'TranslateY': lambda im, m: move(im, 1, 0, 0, 0, 1, -int(m)),
  'Rotate': lambda im, m: im.rotate(m),
  'Brightness': lambda im, m: ImageEnhance.Brightness(im).enhance(1 + m),
  'Color': lambda im, m: ImageEnhance.Color(im).enhance(1 + m),
  'Contrast': lambda im, m: ImageEnhance.Contrast(im).enhance(1 + m),
  'Sharpness': lambda im, m: ImageEnhance.Sharpness(im).enhance(1 + m),
  'Posterize': lambda im, m: ImageOps.posterize(im, int(m)),
  'Solarize': lambda im, m: ImageOps.solarize(im, m),
  'AutoContrast': lambda im, m: ImageOps.autocontrast(im),
  'Equalize': lambda im, m: ImageOps.equalize(im),
}
SHEARS, CHANGES = ('ShearX', 'ShearY'), ('Brightness', 'Color', 'Contrast', 'Sharpness')
SPACES = {'randaugment': policies.randaugment, 'trivialaugment': policies.trivialaugment}


def torchvisions(name: str, policy: str, height: int, width: int) -> np.ndarray:
  """Return the 31 magnitudes of torchvision 0.26, without their sign."""
  wide = policy == 'trivialaugment'
  greatest = dict.fromkeys(SHEARS, 0.99 if wide else 0.3) | dict.fromkeys(CHANGES, 0.99 if wide else 0.9)
  greatest |= {'TranslateX': 32.0 if wide else 150 / 331 * width, 'TranslateY': 32.0 if wide else 150 / 331 * height}
  greatest |= {'Rotate': 135.0 if wide else 30.0}
  if name == 'Posterize':
    return 8 - np.round(np.arange(31) / (30 / (6 if wide else 4)))
  if name == 'Solarize':
    return np.linspace(255.0, 0.0, 31, dtype=np.float32)
  return np.linspace(0.0, greatest.get(name, 0.0), 31, dtype=np.float32)


@pytest.mark.parametrize('policy', SPACES)
@pytest.mark.parametrize('shape', [(32, 32, 3), (28, 36, 1)])
def test_every_row_of_the_table_is_what_torchvision_does_with_pillow(policy: str, shape: tuple[int, int, int]) -> None:
  rng = np.random.default_rng(0)
  y, x = np.mgrid[: shape[0], : shape[1]]
  image = (30 + (4 * y + 2 * x)[..., None] + rng.integers(0, 30, shape)).astype(np.uint8)
  picture = Image.fromarray(image[..., 0] if shape[-1] == 1 else image)
  table = policies.make_table(SPACES[policy](*shape[:2]), np.arange(policies.BINS), *shape[:2])
  actual = np.asarray(jax.jit(policies.apply)(np.repeat(image[None], len(table.kind), 0), table))
  expected = []
  for name, operation in PILLOW.items():
    magnitudes = torchvisions(name, policy, *shape[:2])
    signed = name in (*SHEARS, *CHANGES, 'TranslateX', 'TranslateY', 'Rotate')
    for m in np.concatenate([magnitudes, -magnitudes if signed else magnitudes]).tolist():
      expected.append(np.asarray(operation(picture, m)).reshape(shape))
  assert len(actual) == 14 * 62
  away = np.abs(actual.astype(int) - np.stack(expected)).max((1, 2, 3)).reshape(14, 62)
  assert {name for name, maximum in zip(PILLOW, away.max(1), strict=True) if maximum} <= {'AutoContrast'}
  assert away.max() <= 1


@pytest.mark.torch
@pytest.mark.parametrize('greatest', [0.3, 0.99, 0.9, 30.0, 135.0, 32.0, 150 / 331 * 32, 150 / 331 * 224])
def test_magnitudes_are_torchs(greatest: float) -> None:
  torch = pytest.importorskip('torch')
  ours, theirs = np.linspace(0.0, greatest, 31, dtype=np.float32), torch.linspace(0.0, greatest, 31).numpy()
  np.testing.assert_allclose(ours, theirs, rtol=3e-7)
  np.testing.assert_array_equal(np.trunc(ours), np.trunc(theirs + np.float32(2e-6)))  # 16 pixels come as 15.999999


def test_all_operations_are_drawn_equally_often_and_each_image_by_its_own() -> None:
  images = np.tile(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), (1, 1, 1, 1)).repeat(6000, 0)
  transform = policies.make('randaugment', 1, 30, 0)
  assert transform
  actual = np.asarray(jax.jit(transform)(jax.random.key(0), images))
  table = policies.make_table(policies.randaugment(8, 8), np.array([30]), 8, 8)
  rows = np.asarray(jax.jit(policies.apply)(images[: len(table.kind)], table))
  weight: dict[bytes, int] = {}
  for row in rows:  # several operations leave a gray ramp as it is
    weight[row.tobytes()] = weight.get(row.tobytes(), 0) + 1
  drawn = [image.tobytes() for image in actual]
  assert set(drawn) == weight.keys()
  expected = {outcome: 6000 * w / len(rows) for outcome, w in weight.items()}
  assert sum((drawn.count(o) - e) ** 2 / e for o, e in expected.items()) < 60  # chi-squared, under 27 degrees
  assert len(weight) > 12


def test_layers_follow_each_other() -> None:
  images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
  run = lambda layers: np.asarray(jax.jit(policies.make('randaugment', layers, 9, 0))(jax.random.key(0), images))
  np.testing.assert_array_equal(run(0), images)
  changed = [(run(layers) != images).any((1, 2, 3)).mean() for layers in (1, 3)]
  assert changed[0] < changed[1]
