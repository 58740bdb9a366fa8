"""Moving, resizing and cutting out, against Pillow, torchvision's definitions and the requested shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxres.data.augment import geometry


def noise(*shape: int) -> np.ndarray:
  return np.random.default_rng(1).integers(1, 256, shape).astype(np.uint8)


@pytest.mark.parametrize('shape', [(32, 32), (8, 8), (31, 40), (224, 224)])
def test_rotation_is_pillows_bits(shape: tuple[int, int]) -> None:
  image = noise(*shape, 3)
  degrees = np.concatenate([np.linspace(-180, 180, 41), [90, -90, 0.001, 17.123]])
  matrices = geometry.to_fixed_point(geometry.rotation(degrees, *shape))
  actual = jax.jit(jax.vmap(geometry.affine, (None, 0, None)))(image, matrices, 9)
  for angle, turned in zip(degrees, actual, strict=True):
    expected = Image.fromarray(image).rotate(angle, Image.Resampling.NEAREST, fillcolor=(9, 9, 9))
    np.testing.assert_array_equal(turned, expected, err_msg=str(angle))


@pytest.mark.parametrize('shape', [(32, 32), (13, 20)])
def test_affine_is_pillows_bits(shape: tuple[int, int]) -> None:
  rng, image = np.random.default_rng(2), noise(*shape, 3)
  maps = rng.normal([1, 0, 0, 0, 1, 0], [0.5, 0.5, 5, 0.5, 0.5, 5], (60, 6))
  maps[:4] = [[1, 0, -3, 0, 1, 2], [1, 0.3, 0, 0, 1, 0], [1, 0, 0, -0.99, 1, 0], [1, 0, 99, 0, 1, 0]]
  actual = jax.vmap(geometry.affine, (None, 0, None))(jnp.asarray(image), geometry.to_fixed_point(maps), 0)
  size = shape[::-1]
  for coefficients, moved in zip(maps, actual, strict=True):
    expected = Image.fromarray(image).transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)
    np.testing.assert_array_equal(moved, expected)
  assert not np.asarray(actual[3]).any()


@pytest.mark.parametrize('shape', [(32, 32, 3), (8, 8, 1), (31, 45, 3), (224, 160, 3)])
def test_resized_crop_is_pillows_bits(shape: tuple[int, int, int]) -> None:
  rng, image = np.random.default_rng(3), noise(*shape)
  height, width, _ = shape
  boxes = [(0, 0, height, width), (height - 1, width - 1, 1, 1), (2, 0, height - 2, width), (0, 3, 5, 4)]
  for _ in range(30):
    rows, columns = rng.integers(1, height + 1), rng.integers(1, width + 1)
    boxes.append((rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1), rows, columns))
  actual = jax.jit(jax.vmap(geometry.crop_and_resize, (None, 0)))(image, np.array(boxes, np.int32))
  picture = Image.fromarray(image[..., 0] if shape[-1] == 1 else image)
  for (top, left, rows, columns), resized in zip(boxes, actual, strict=True):
    part = picture.crop((left, top, left + columns, top + rows))
    expected = np.asarray(part.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)
    np.testing.assert_array_equal(resized, expected)


def test_boxes_have_the_areas_and_ratios_of_torchvision() -> None:
  sizes, actual = geometry.draw_boxes(jax.random.key(0), 4000, 1000, 1000, (1e5, 4e5), (0.5, 2.0))
  rows, columns = np.asarray(sizes).T
  assert actual.all()
  areas, ratios = (rows * columns - 1e5) / 3e5, np.log2(columns / rows)
  for share in (areas, (ratios + 1) / 2):  # both uniform in 0..1
    counts = np.histogram(share, bins=10, range=(-0.01, 1.01))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 30  # chi-squared, 9 degrees: p < 0.0005


def test_boxes_that_do_not_fit_are_drawn_again() -> None:
  sizes, actual = geometry.draw_boxes(jax.random.key(0), 2000, 10, 10, (50, 150), (0.5, 2.0))
  assert np.asarray(sizes)[np.asarray(actual)].max() <= 10
  assert 0.95 < actual.mean() < 1
  assert np.asarray(sizes)[np.asarray(actual)].prod(1).max() > 90
  _, actual = geometry.draw_boxes(jax.random.key(0), 100, 10, 10, (121, 150), (1.0, 1.0))
  assert not actual.any()


def test_places_are_even_and_inside() -> None:
  sizes = jnp.tile(jnp.array([[4, 7], [8, 9]]), (3000, 1))
  boxes = np.asarray(geometry.place(jax.random.key(0), sizes, 8, 9))
  np.testing.assert_array_equal(boxes[:, 2:], sizes)
  assert (boxes[1::2, :2] == 0).all()
  counts = [np.bincount(boxes[::2, 0], minlength=5), np.bincount(boxes[::2, 1], minlength=3)]
  assert [len(c) for c in counts] == [5, 3]
  assert all(((c - c.mean()) ** 2 / c.mean()).sum() < 25 for c in counts)


def test_resized_crop_of_the_complete_area_is_the_image_or_nearly() -> None:
  images = noise(40, 16, 16, 3)
  actual = np.asarray(geometry.random_resized_crop(jax.random.key(0), jnp.asarray(images), scale=(1.0, 1.0)))
  same = (actual == images).all((1, 2, 3))
  assert same.any()  # no other box than the complete image has this area; most are the fall-back
  wide = noise(8, 4, 40, 3)
  actual = np.asarray(geometry.random_resized_crop(jax.random.key(0), jnp.asarray(wide), scale=(1.0, 1.0)))
  middle = jax.vmap(geometry.crop_and_resize, (0, None))(wide, jnp.array([0, 17, 4, 5]))  # 4 * 4 / 3 columns
  np.testing.assert_array_equal(actual, middle)


def test_random_rotation_stays_in_its_range() -> None:
  image = noise(33, 33, 1)
  images = jnp.repeat(image[None], 500, 0)
  actual = np.asarray(geometry.random_rotation(jax.random.key(0), images, degrees=20.0, fill=0))
  angles = np.linspace(-20, 20, geometry.ANGLES)
  possible = {np.asarray(Image.fromarray(image[..., 0]).rotate(a)).tobytes() for a in angles}
  drawn = {turned.tobytes() for turned in actual}
  assert drawn <= possible
  assert len(drawn) > 300


def test_erase_fills_a_box_of_the_asked_size_as_often_as_asked() -> None:
  images = noise(4000, 20, 30, 1)
  actual = np.asarray(geometry.random_erase(jax.random.key(0), jnp.asarray(images), probability=0.3, fill=0))
  changed = (actual != images)[..., 0]
  hit = changed.any((1, 2))
  assert 0.26 < hit.mean() < 0.34  # 0.3, standard deviation 0.007
  rows, columns = changed.any(2).sum(1)[hit], changed.any(1).sum(1)[hit]
  np.testing.assert_array_equal(changed[hit].sum((1, 2)), rows * columns)  # a complete box
  assert (actual[changed] == 0).all()
  area, ratio = rows * columns / 600, rows / columns
  assert area.min() < 0.04
  assert 0.3 < area.max() < 0.36
  assert ratio.min() < 0.5
  assert ratio.max() > 2


@pytest.mark.parametrize('side', [1, 4, 5, 100])
def test_cutout_is_a_square_about_any_pixel(side: int) -> None:
  images = noise(600, 6, 9, 3)
  actual = np.asarray(geometry.random_cutout(jax.random.key(0), jnp.asarray(images), side=side, fill=0))
  mask = np.zeros((6 + 2 * side, 9 + 2 * side), bool)
  possible = set()
  for top in range(6):
    for left in range(9):
      square = mask.copy()
      square[top + side - side // 2 :, left + side - side // 2 :][:side, :side] = True
      possible.add(square[side : side + 6, side : side + 9].tobytes())
  drawn = {cut.tobytes() for cut in (actual == 0).all(-1)}
  assert drawn == possible
  kept = ~(actual == 0).all(-1)
  np.testing.assert_array_equal(actual[kept], images[kept])
