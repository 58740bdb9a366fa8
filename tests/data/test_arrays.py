import pathlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxres.data import arrays
from jaxres.errors import InputError
from tests.conftest import make_arrays


def test_digits_are_scikit_learns() -> None:
  source = arrays.read_digits()
  assert (len(source.train.labels), len(source.test.labels)) == (1438, 359)
  assert source.class_names == tuple('0123456789')
  found = np.concatenate([source.train.images, source.test.images]).astype(float)[..., 0] * 16 / 255
  labels = np.concatenate([source.train.labels, source.test.labels])
  ours = sorted((label, image.round().tobytes()) for image, label in zip(found, labels, strict=True))
  digits = load_digits()
  assert ours == sorted((label, image.tobytes()) for image, label in zip(digits.images, digits.target, strict=True))


def test_npz_is_read_as_written(npz) -> None:
  content = make_arrays()
  source = arrays.read_npz(npz(**content))
  np.testing.assert_array_equal(source.train.images, content['train_x'])
  np.testing.assert_array_equal(source.test.labels, content['test_y'])
  assert source.train.labels.dtype == np.int32
  assert source.class_names == ('0', '1', '2', '3')


def test_grey_images_get_a_channel_and_classes_get_their_names(npz) -> None:
  content = make_arrays(shape=(8, 8))
  source = arrays.read_npz(npz(**content, class_names=np.array(['a', 'b', 'c', 'd', 'e'])))
  assert source.train.images.shape == (96, 8, 8, 1)
  assert source.class_names == ('a', 'b', 'c', 'd', 'e')


def change(**changes: np.ndarray) -> dict:
  return make_arrays() | changes


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'train_x': np.zeros(3)}, 'no array train_y; found train_x; expected train_x, train_y, test_x, test_y'),
    (change(train_x=np.zeros((96, 8, 8, 3), np.float32)), r'train_x: expected uint8 \[N, H, W, C\].*found float32'),
    (change(train_x=np.zeros((96, 64), np.uint8)), r'train_x: expected uint8 .*found uint8 \[96, 64\]'),
    (change(test_y=np.zeros(3, int)), r'test_y: expected integers \[40\], found int64 \[3\]'),
    (change(test_y=np.zeros(40)), r'test_y: expected integers \[40\], found float64 \[40\]'),
    (change(train_x=np.zeros((0, 8, 8, 3), np.uint8), train_y=np.zeros(0, int)), 'train_x is empty'),
    (change(test_x=np.zeros((40, 9, 9, 3), np.uint8)), 'images of different shapes'),
    (change(train_y=np.arange(96) % 4 + 1), 'no training example has label 0, one has 1; expected 0, 1, ...'),
    (change(train_y=np.arange(96) % 4 * 2), 'no training example has label 1, one has 2'),
  ],
)
def test_wrong_arrays_are_named(npz, content: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    arrays.read_npz(npz(**content))


def test_wrong_files_are_named(tmp_path) -> None:
  with pytest.raises(InputError, match='data.path: .* give its path'):
    arrays.read_npz(None)
  with pytest.raises(InputError, match=r'data.path: no such file: .*none.npz'):
    arrays.read_npz(str(tmp_path / 'none.npz'))
  broken = tmp_path / 'broken.npz'
  broken.write_bytes(b'<html>not found</html>')
  with pytest.raises(InputError, match=r'broken.npz: not a readable .npz file'):
    arrays.read_npz(str(broken))


def test_damaged_files_are_named(npz, tmp_path) -> None:
  whole = pathlib.Path(npz()).read_bytes()
  middle = len(whole) // 2
  damaged = {'cut': whole[:middle], 'flipped': whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]}
  for name, content in damaged.items():
    path = tmp_path / f'{name}.npz'
    path.write_bytes(content)
    with pytest.raises(InputError, match=f'{name}.npz: not a readable .npz file'):
      arrays.read_npz(str(path))
  np.save(tmp_path / 'single.npy', np.zeros(3))
  with pytest.raises(InputError, match='single.npy: not a readable .npz file'):
    arrays.read_npz(str(tmp_path / 'single.npy'))


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_a_damaged_byte_anywhere_is_one_line(tmp_path, save) -> None:
  path, rng = tmp_path / 'x.npz', np.random.default_rng(0)
  save(path, **make_arrays((8, 8), (4, 4, 3)))
  whole, refused, read = path.read_bytes(), 0, 0
  for at in rng.integers(len(whole), size=400):
    path.write_bytes(whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :])
    try:
      arrays.read_npz(str(path))
    except InputError as error:
      refused += 'x.npz: ' in str(error)
      continue
    read += 1
  assert refused + read == 400  # it is read where the byte means nothing, or is what it was
  assert refused > 200


def test_class_names_are_a_list(npz) -> None:
  with pytest.raises(InputError, match='class_names: expected a list of names'):
    arrays.read_npz(npz(**make_arrays(), class_names=np.array('cat')))


def test_pickled_objects_are_refused(tmp_path) -> None:
  path = tmp_path / 'objects.npz'
  np.savez(path, train_x=np.array([{}], dtype=object))
  with pytest.raises(InputError, match='not a readable .npz file'):
    arrays.read_npz(str(path))
