import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxres import checkpoint, cli
from tests.helpers import make_arrays
from tests.train.runs import PROGRESS, make_train_state

CONFIG = 'configs/digits.py'


def output(capsys) -> str:
  return ' '.join(capsys.readouterr().out.replace('│', ' ').split())


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
  with checkpoint.open_manager(tmp_path / 'run/checkpoints', keep_latest=2) as manager:
    for step in (1, 2):
      checkpoint.save(manager, make_train_state(step), PROGRESS, {})
  return tmp_path / 'run'


def test_a_healthy_machine_and_run(run, capsys) -> None:
  assert cli.main(['doctor', '--workdir', str(run)]) == 0
  text = output(capsys)
  for wanted in (
    'jax, jaxlib ok',
    'devices ok 2 x cpu',
    'sums ok jaxlib ',
    'known programs ',
    'checkpoint 1 ok',
    'checkpoint 2 ok',
    ' 0 problem',
  ):
    assert wanted in text


def test_a_damaged_checkpoint_is_a_problem(run, capsys) -> None:
  (run / 'checkpoints/2/progress/metadata').write_text('{}')
  assert cli.main(['doctor', '--workdir', str(run)]) == 1
  assert 'checkpoint 2 problem damaged: progress: not what was saved' in output(capsys)
  shutil.rmtree(run / 'checkpoints')
  assert cli.main(['doctor', '--workdir', str(run)]) == 1
  assert 'no checkpoints there' in output(capsys)


def test_the_data_of_a_config(npz, tmp_path, capsys) -> None:
  arrays = make_arrays()
  arrays['test_x'][3] = arrays['train_x'][5]
  words = ['doctor', f'--config={CONFIG}', '--config.data.name=arrays', f'--config.data.path={npz(**arrays)}']
  words += ['--config.data.batch_size=16']
  assert cli.main(words) == 0
  text = output(capsys)
  assert 'duplicates warning 1 of test are in train too, such as test 3 = train 5' in text
  assert 'train labels ok 96 examples of 4 classes, 24 to 24 of each' in text


def test_what_is_wrong_with_a_config_does_not_hide_its_data(npz, tmp_path, capsys) -> None:
  arrays = make_arrays()
  arrays['test_x'][3] = arrays['train_x'][5]
  words = ['doctor', f'--config={CONFIG}', '--config.data.name=arrays', f'--config.data.path={npz(**arrays)}']
  assert cli.main([*words, '--config.data.batch_size=16', '--config.data.val=0', '--config.train.patience=2']) == 1
  text = output(capsys)
  assert 'config problem train.patience: early stopping looks at the validation split' in text
  for wanted in (
    'data ok images of',
    'train labels ok 96 examples of 4 classes',
    'test labels ok',
    'duplicates warning 1',
  ):
    assert wanted in text


def test_undecodable_images_are_all_named(tmp_path, capsys) -> None:
  for split in ('train', 'test'):
    for at in range(16):
      path = tmp_path / 'images' / split / f'class{at % 2}' / f'{at}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = np.random.default_rng([at, split == 'test']).integers(0, 255, (8, 8, 3))
      Image.fromarray(pixels.astype(np.uint8)).save(path)
  bad = ['train/class0/4.png', 'train/class1/7.png', 'test/class1/3.png']
  for name in bad:
    (tmp_path / 'images' / name).write_text('no image')
  words = ['doctor', f'--config={CONFIG}', '--config.data.name=folder', f'--config.data.path={tmp_path / "images"}']
  assert cli.main([*words, '--config.data.image_size=8', '--config.data.batch_size=8']) == 1
  text = output(capsys).replace(' ', '')
  assert 'imagesproblem3cannotbedecoded' in text
  assert all(name in text for name in bad)


def test_a_config_that_cannot_be_used(capsys) -> None:
  assert cli.main(['doctor', f'--config={CONFIG}', '--config.train.loss=xent', '--config.train.epochs=30']) == 1
  assert 'config problem train.loss: unknown loss' in output(capsys)
