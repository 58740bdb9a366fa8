"""The tool on the digits, and its picture pixel by pixel."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from jaxres import cli, data
from jaxres.analysis import images as images_lib
from jaxres.data import augment
from tests.helpers import ROOT

DIGITS = ['--config', str(ROOT / 'configs/digits.py'), '--config.data.limit=100']


def test_the_picture_of_the_digits(tmp_path: pathlib.Path, capsys) -> None:
  out = tmp_path / 'new' / 'grid.png'
  words = ['show-data', *DIGITS, '--config.augment.crop_pad=2', '--out', str(out), '--examples=5', '--draws', '3']
  assert cli.main(words) is None
  assert capsys.readouterr().out == f'{out}: 5 training images, the originals on the left, then steps 0 to 2\n'
  picture = np.asarray(Image.open(out))
  assert picture.shape == (5 * 68, 4 * 68)  # 8 pixels, 8 times as large, and a gap of 2 all around
  train = data.load('digits', limit=100, batch_size=64).train
  index = next(train.step_inputs(0, 1))['index']
  images = np.asarray(train.device_data['image'])[index]
  columns = [images]
  for step in range(3):
    columns.append(augment.make(crop_pad=2)(jax.random.fold_in(jax.random.key(0), step), images))
  for row in range(5):
    for column in range(4):
      cell = picture[row * 68 :, column * 68 :][2:66:8, 2:66:8]
      np.testing.assert_array_equal(cell, np.asarray(columns[column])[row, ..., 0])
  assert (picture[:2] == 255).all()


def test_mixing_shows(npz) -> None:
  dataset = data.load('arrays', path=npz(), batch_size=16)
  grid = images_lib.draw_augmentations(dataset, augment.make(mixup=1.0), 0, 4, 2)
  assert grid.shape == (4, 3, 8, 8, 3)
  alone = images_lib.draw_augmentations(dataset, augment.make(), 0, 4, 2)
  np.testing.assert_array_equal(alone, alone[:, :1].repeat(3, 1))
  assert (grid[:, 1:] != alone[:, 1:]).any((2, 3, 4)).all()
  picture = np.asarray(images_lib.make_picture(grid))
  np.testing.assert_array_equal(picture[2:66:8, 2:66:8], grid[0, 0])


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> pathlib.Path:
  """A folder of two classes of noise."""
  rng = np.random.default_rng(0)
  for i in range(20):
    file = tmp_path / 'photos' / 'ab'[i % 2] / f'{i:02}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(file)
  return tmp_path / 'photos'


def test_a_stream_shows_complete_originals_and_its_own_crops(photos: pathlib.Path) -> None:
  options = {'path': str(photos), 'pipeline': 'stream', 'image_size': 16, 'batch_size': 8}
  dataset = data.load('folder', **options)
  grid = images_lib.draw_augmentations(dataset, augment.make(), 0, 4, 3)
  complete = data.load('folder', **options | {'crop_scale': ()})
  np.testing.assert_array_equal(grid[:, 0], data.first_batch(complete.train)['image'][:4])
  np.testing.assert_array_equal(grid[:, 1], data.first_batch(dataset.train)['image'][:4])
  columns = [grid[:, k] for k in range(4)]
  assert all((columns[a] != columns[b]).any((1, 2, 3)).all() for a in range(4) for b in range(a))


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (
      [*DIGITS, '--config.augment.rotat=3', '--out', 'x.png'],
      "unknown field 'rotat' of section 'augment'; did you mean",
    ),
    (
      [*DIGITS, '--config.augment.rotate=far', '--out', 'x.png'],
      "--config.augment.rotate: expected float, found 'far'",
    ),
    ([*DIGITS, '--config.augment.erase=2', '--out', 'x.png'], 'augment.erase: expected a value in [0, 1], found 2.0'),
    (['--config', 'none.py', '--out', 'x.png'], 'no such file: none.py'),
    ([*DIGITS, '--out', 'x.txt'], '--out x.txt: expected a picture'),
    ([*DIGITS, '--out', 'x.png', '--draws=0'], '--draws: expected 1 or more, found 0'),
    ([*DIGITS, '--out', '/dev/null/x.png'], '/dev/null/x.png: cannot write: '),
    (DIGITS, 'the following arguments are required: --out'),
  ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys) -> None:
  with pytest.raises(SystemExit) as caught:
    cli.main(['show-data', *words])
  assert caught.value.code == 2
  line = capsys.readouterr().err
  assert message in line
  assert line.count('\n') == 1
