"""What is tested where the data has train and val alone: data.test."""

import numpy as np
import pytest
from PIL import Image

from jaxres import data
from jaxres.errors import InputError
from jaxres.train import loop
from tests.helpers import merge


@pytest.fixture
def photos(tmp_path) -> str:
  for split, count in (('train', 10), ('val', 4)):
    for label, name in enumerate(('cat', 'dog')):
      folder = tmp_path / 'photos' / split / name
      folder.mkdir(parents=True)
      for number in range(count):
        pixels = np.full((8, 8, 3), 40 + 100 * label + number, np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
  return str(tmp_path / 'photos')


def sizes(dataset: data.Dataset) -> dict:
  return {name: pipeline and pipeline.size for name, pipeline in dataset._asdict().items() if name != 'info'}


def test_a_fifth_of_train_is_the_default_and_told_in_one_line(photos, capsys) -> None:
  assert sizes(data.load('folder', path=photos)) == {'train': 16, 'val': 8, 'test': 4}
  line = capsys.readouterr().err
  assert line.count('\n') == 1
  assert 'has no test split: 4 of its training images, a stratified fifth, are held out' in line
  assert 'data.test=val would test on its val split' in line


def test_the_val_split_is_tested_and_chooses_nothing(photos, capsys) -> None:
  dataset = data.load('folder', path=photos, test='val')
  assert sizes(dataset) == {'train': 20, 'val': None, 'test': 8}
  assert 'its val split is tested, and chooses no weights' in capsys.readouterr().err
  assert sizes(data.load('folder', path=photos, test='val', val=0.2)) == {'train': 16, 'val': 4, 'test': 8}


def test_nothing_is_tested(photos, npz, capsys) -> None:
  dataset = data.load('folder', path=photos, test='none')
  assert sizes(dataset) == {'train': 20, 'val': 8, 'test': None}
  assert dataset.evaluated is dataset.val
  assert 'test' not in dataset.info.splits
  assert sizes(data.load('arrays', path=npz(), test='none', val=0.25)) == {'train': 72, 'val': 24, 'test': None}
  assert capsys.readouterr().err == ''


def test_a_training_without_a_test_split(config, tmp_path) -> None:
  scores = loop.train_and_evaluate(merge(config, data={'test': 'none', 'val': 0.25}), tmp_path / 'run')
  assert 'val/top1' in scores
  assert not [name for name in scores if name.startswith('test/')]
  alone = loop.train_and_evaluate(merge(config, data={'test': 'none'}), tmp_path / 'alone')
  assert not [name for name in alone if name.startswith(('test/', 'val/', 'best/'))]
  assert 'train/loss' in alone


@pytest.mark.parametrize(
  ('name', 'test', 'message'),
  [
    ('arrays', 'val', "data.test: 'val', but arrays has a test split; leave it at 'split'"),
    ('digits', 'val', "data.test: 'val', but digits has a test split; leave it at 'split'"),
    ('arrays', 'vall', "data.test: unknown value 'vall'; did you mean 'val'?"),
  ],
)
def test_what_cannot_be_tested(name: str, test: str, message: str, npz) -> None:
  with pytest.raises(InputError) as caught:
    data.load(name, path=npz() if name == 'arrays' else None, test=test)
  assert message in str(caught.value)


def test_a_folder_without_a_val_split_has_none_to_test(photos, tmp_path) -> None:
  (tmp_path / 'photos/val').rename(tmp_path / 'val')
  with pytest.raises(InputError, match="data.test: 'val', but .*photos has no val split; leave it at 'split'"):
    data.load('folder', path=photos, test='val')
