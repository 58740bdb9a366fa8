import pathlib
import re

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxres.data.sources import arrays
from jaxres.errors import InputError
from tests.helpers import make_arrays


def test_digits_are_scikit_learns() -> None:
  source = arrays.read_digits()
  assert (len(source.train.labels), len(source.test.labels)) == (1438, 359)
  assert source.class_names == tuple('0123456789')
  actual = np.concatenate([source.train.images, source.test.images]).astype(float)[..., 0] * 16 / 255
  labels = np.concatenate([source.train.labels, source.test.labels])
  ours = sorted((label, image.round().tobytes()) for image, label in zip(actual, labels, strict=True))
  digits = load_digits()
  assert ours == sorted((label, image.tobytes()) for image, label in zip(digits.images, digits.target, strict=True))


def test_npz_is_read_as_written(npz) -> None:
  content = make_arrays()
  source = arrays.read_npz(npz(**content))
  np.testing.assert_array_equal(source.train.images, content['train_x'])
  np.testing.assert_array_equal(source.test.labels, content['test_y'])
  assert source.train.labels.dtype == np.int32
  assert source.class_names == ('0', '1', '2', '3')


def test_gray_images_get_a_channel_and_classes_get_their_names(npz) -> None:
  content = make_arrays(shape=(8, 8))
  source = arrays.read_npz(npz(**content, class_names=np.array(['a', 'b', 'c', 'd', 'e'])))
  assert source.train.images.shape == (96, 8, 8, 1)
  assert source.class_names == ('a', 'b', 'c', 'd', 'e')


def change(**changes: np.ndarray) -> dict:
  return make_arrays() | changes


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'train_x': np.zeros(3)}, 'no array train_y; expected train_x, train_y, test_x, test_y, found train_x'),
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
  complete = pathlib.Path(npz()).read_bytes()
  middle = len(complete) // 2
  damaged = {
    'cut': complete[:middle],
    'flipped': complete[:middle] + bytes([complete[middle] ^ 1]) + complete[middle + 1 :],
  }
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
  complete, refused, read = path.read_bytes(), 0, 0
  for at in rng.integers(len(complete), size=400):
    path.write_bytes(complete[:at] + bytes([rng.integers(256)]) + complete[at + 1 :])
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


def make_content(**changes: np.ndarray) -> dict:
  return make_arrays((8, 8), (6, 7, 3)) | changes


IMAGES, LABELS = make_content()['train_x'], make_content()['train_y']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'train_x': IMAGES.transpose(0, 3, 1, 2)}, r'channels first; use train_x.transpose\(0, 2, 3, 1\)'),
    ({'test_x': IMAGES.transpose(0, 3, 1, 2)[:, :1]}, r'channels first; use test_x.transpose\(0, 2, 3, 1\)'),
    ({'train_x': IMAGES.transpose(1, 2, 3, 0)}, r'examples last; use train_x.transpose\(3, 0, 1, 2\)'),
    ({'train_x': IMAGES.reshape(8, -1)}, r'expected uint8 \[N, H, W, C\].*found uint8 \[8, 126\]'),
    ({'train_x': (IMAGES / 255).astype(np.float32)}, r'float32 .*from 0 to 0.898039; use np.rint\(255 \* train_x\)'),
    ({'train_x': IMAGES.astype(float)}, r'float64 .*; use np.rint\(train_x\).astype\(np.uint8\)'),
    ({'train_x': IMAGES.astype(np.int64)}, r'int64 .*; use np.rint\(train_x\).astype\(np.uint8\)'),
    ({'train_x': IMAGES.astype(np.int16) - 128}, r'int16 .*from -128 to .*; scale them to 0..255'),
    ({'train_x': IMAGES.astype(np.uint16) * 257}, r'uint16 .*from 0 to .*; scale them to 0..255'),
    ({'train_x': np.full(IMAGES.shape, np.nan)}, r'float64 .*from nan to nan; scale them'),
    ({'train_x': IMAGES > 9}, r'bool .*from 0 to 1; use np.rint\(255 \* train_x\)'),
    ({'train_x': IMAGES.astype('S3')}, r'found \|S3'),
    ({'train_y': LABELS.astype(float)}, r'integers \[8\], found float64 \[8\]; use .astype\(np.int32\)'),
    ({'train_y': LABELS + 0.5}, r'integers \[8\], found float64 \[8\]$'),
    ({'train_y': LABELS[:, None]}, r'found int64 \[8, 1\]; use .ravel\(\)'),
    ({'train_y': np.eye(4, dtype=int)[LABELS]}, r'found int64 \[8, 4\]; of one number for each class use .argmax'),
    ({'train_y': LABELS + 2**32}, 'labels from 0 on, found 4294967296 to 4294967299'),
    ({'train_y': LABELS.astype(np.uint64) + np.uint64(2**63)}, 'labels from 0 on, found 9223372036854775808 to'),
    ({'train_y': LABELS - 2**33}, 'labels from 0 on, found -8589934592 to'),
    ({'train_y': LABELS.astype(str)}, r'found <U'),
    ({'train_y': np.array(3)}, r'integers \[8\], found int64 \[\]'),
  ],
)
def test_arrays_of_another_form_are_refused_with_the_fix(npz, change: dict, message: str) -> None:
  with pytest.raises(InputError, match=message) as caught:
    arrays.read_npz(npz(**make_content(**change)))
  assert '\n' not in str(caught.value)


def test_the_fix_is_right(npz) -> None:
  expected = arrays.read_npz(npz(**make_content())).train.images
  first, last = IMAGES.transpose(0, 3, 1, 2), IMAGES.transpose(1, 2, 3, 0)
  for fixed in (
    first.transpose(0, 2, 3, 1),
    last.transpose(3, 0, 1, 2),
    np.rint(255 * (IMAGES / 255)).astype(np.uint8),
    np.rint(IMAGES.astype(np.float32)).astype(np.uint8),
  ):
    np.testing.assert_array_equal(arrays.read_npz(npz(**make_content(train_x=fixed))).train.images, expected)


@pytest.mark.parametrize(
  'shape',
  [(8, 3, 3, 3), (8, 1, 1, 3), (8, 28, 28, 1), (8, 3, 4, 4), (8, 9, 9, 200), (8, 64, 64, 13), (8, 64, 48, 13)],
)
def test_shapes_that_may_be_meant_are_read(npz, shape: tuple) -> None:
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  content = make_content(train_x=images, test_x=images)
  assert arrays.read_npz(npz(**content)).train.images.shape == shape


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((8, 13, 16, 16), 'which has the channels first; use train_x.transpose(0, 2, 3, 1), or save channels=16 beside it'),
    ((8, 5, 8, 8), 'which has the channels first'),
    ((8, 32, 13, 13), 'which has the channels first'),
    ((8, 3, 32, 30), 'which has the channels first'),
    ((8, 13, 16, 18), 'where they may be the first of 13x16x18 or the last; use train_x.transpose(0, 2, 3, 1)'),
    ((8, 6, 7, 12), 'where they may be the first of 6x7x12 or the last'),
    ((8, 16, 13, 18), 'where they may be the first of 16x13x18 or the last'),
    ((8, 8, 8, 8), 'where they may be the first of 8x8x8 or the last'),
    ((8, 3, 4, 6), 'where they may be the first of 3x4x6 or the last'),
  ],
)
def test_an_axis_of_many_channels_needs_an_answer(npz, shape: tuple, message: str) -> None:
  """Neither is such a set trained as it should not be, nor can it not be trained."""
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  with pytest.raises(InputError, match=re.escape(message)):
    arrays.read_npz(npz(**make_content(train_x=images, test_x=images)))
  content = make_content(train_x=images, test_x=images, channels=np.array(shape[3]))
  assert arrays.read_npz(npz(**content)).train.images.shape == shape  # a message says that they are last
  first = images.transpose(0, 2, 3, 1)
  content = make_content(train_x=first, test_x=first, channels=np.array(shape[1]))
  np.testing.assert_array_equal(arrays.read_npz(npz(**content)).test.images, first)
  with pytest.raises(InputError, match=f'channels is {shape[1] + 100}; put them last, or mend the number'):
    arrays.read_npz(npz(**content | {'channels': np.array(shape[1] + 100)}))


@pytest.mark.parametrize('channels', [np.array('3'), np.array([3, 3]), np.array(0), np.array(3.0), np.zeros(0, int)])
def test_channels_is_one_number(npz, channels: np.ndarray) -> None:
  with pytest.raises(InputError, match='channels: expected one whole number, 1 or more, found'):
    arrays.read_npz(npz(**make_content(channels=channels)))


def test_classes_have_different_names(npz) -> None:
  with pytest.raises(InputError, match="classes 1 and 3 are both called 'b'; give each its own name"):
    arrays.read_npz(npz(**make_content(), class_names=np.array(['a', 'b', 'c', 'b'])))
  with pytest.raises(InputError, match='the name of class 2 is empty'):
    arrays.read_npz(npz(**make_content(), class_names=np.array(['a', 'b', '', 'd'])))


def test_classes_that_are_called_alike_are_told(npz, capsys) -> None:
  arrays.read_npz(npz(**make_content(), class_names=np.array(['cat', 'dog', 'Cat', 'd'])))
  assert "'cat' and 'Cat' are 2 classes; write them alike if they are one" in capsys.readouterr().err


@pytest.mark.parametrize(
  'change',
  [
    {'class_names': np.array('x' * 100_000)},
    {'class_names': np.array([b'\xe9' * 100_000, b'b', b'c', b'd'])},
    {'class_names': np.array(['x' * 100_000] * 4)},
    {'class_names': np.zeros((1,) * 32, int)},
    {'train_x': np.zeros((1,) * 32, np.uint8)},
    {'channels': np.zeros((1,) * 32)},
    {'train_y': np.zeros((1,) * 32)},
    {'train_x': np.zeros(8, [(f'field{i}', 'u1') for i in range(1000)])},
    {'train_y': np.zeros(8, [(f'field{i}', 'u1') for i in range(1000)])},
    {'class_names': np.zeros((4, 4), [(f'field{i}', 'u1') for i in range(1000)])},
  ],
)
def test_what_arrays_say_never_makes_a_long_line(npz, change: dict) -> None:
  path = npz(**make_content(**change))
  with pytest.raises(InputError) as caught:
    arrays.read_npz(path)
  assert len(str(caught.value).replace(path, '')) < 400
  assert '\n' not in str(caught.value)


def test_many_other_arrays_are_not_all_listed(npz) -> None:
  path = npz(**{f'array{i}': np.zeros(1) for i in range(2000)})
  with pytest.raises(InputError, match='no array train_x; .* found array0, ') as caught:
    arrays.read_npz(path)
  assert len(str(caught.value).replace(path, '')) < 400


def test_names_of_classes_in_bytes_become_text(npz) -> None:
  names = np.array([name.encode() for name in ('Katze', 'Hündin', '猫', 'b')])
  assert names.dtype.kind == 'S'
  assert arrays.read_npz(npz(**make_content(), class_names=names)).class_names == ('Katze', 'Hündin', '猫', 'b')
  with pytest.raises(InputError, match=r"class_names: b'caf\\xe9' is not UTF-8"):
    arrays.read_npz(npz(**make_content(), class_names=np.array([b'caf\xe9', b'b', b'c', b'd'])))


def test_images_of_zeros_and_ones_are_told(npz, capsys) -> None:
  arrays.read_npz(npz(**make_content(train_x=(IMAGES > 90).astype(np.uint8))))
  assert 'train_x has no value above 1: black images' in capsys.readouterr().err
  arrays.read_npz(npz(**make_content()))
  assert capsys.readouterr().err == ''
