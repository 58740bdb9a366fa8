"""The tool on the digits, and its picture pixel by pixel."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from jaxres import cli, data, show_data
from jaxres.data import augment
from tests.conftest import ROOT

DIGITS = ['--config', str(ROOT / 'configs/digits.py'), '--config.data.limit=100']


def test_the_picture_of_the_digits(tmp_path: pathlib.Path, capsys) -> None:
  out = tmp_path / 'new' / 'grid.png'
  words = ['show-data', *DIGITS, '--config.augment.crop_pad=2', '--out', str(out), '--examples=5', '--draws', '3']
  assert cli.main(words) is None
  assert capsys.readouterr().out == f'{out}: 5 training images, the originals on the left, then steps 0 to 2\n'
  picture = np.asarray(Image.open(out))
  assert picture.shape == (5 * 68, 4 * 68)  # 8 pixels, 8 times as large, and a gap of 2 all around
  train = data.load('digits', limit=100, batch_size=64).train
  index = next(train.train_feeds(0, 1))['index']
  images = np.asarray(train.constants['image'])[index]
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
  grid = show_data.draw(dataset, augment.make(mixup=1.0), 0, 4, 2)
  assert grid.shape == (4, 3, 8, 8, 3)
  alone = show_data.draw(dataset, augment.make(), 0, 4, 2)
  np.testing.assert_array_equal(alone, alone[:, :1].repeat(3, 1))
  assert (grid[:, 1:] != alone[:, 1:]).any((2, 3, 4)).all()
  picture = np.asarray(show_data.make_picture(grid))
  np.testing.assert_array_equal(picture[2:66:8, 2:66:8], grid[0, 0])


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
    ([*DIGITS, '--config.augment.erase=2', '--out', 'x.png'], 'augment.erase: expected 0 to 1, found 2.0'),
    (['--config', 'none.py', '--out', 'x.png'], 'no such file: none.py'),
    ([*DIGITS, '--out', 'x.txt'], '--out x.txt: expected a picture'),
    ([*DIGITS, '--out', 'x.png', '--draws=0'], '--draws: expected 1 or more, found 0'),
    ([*DIGITS, '--out', '/dev/null/x.png'], '--out: /dev/null/x.png cannot be written: '),
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
