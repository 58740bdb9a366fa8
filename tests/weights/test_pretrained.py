"""config.init: a training that starts with other weights."""

import json
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest

from jaxres import models, weights
from jaxres.errors import InputError
from jaxres.train import loop
from tests.helpers import make_arrays, merge, run_main
from tests.train.runs import final_state
from tests.weights.files import Call, entry, make_state, tensor, write_zip


@pytest.fixture
def file(tmp_path, tiny):
  """A file of a network `tiny` with 4 classes."""
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  return str(tmp_path / 'tiny.pth')


def test_a_run_starts_with_the_weights_and_its_average_too(config, tmp_path, file) -> None:
  still = merge(config, optim={'lr': 0.0}, train={'epochs': 0.17, 'ema': 0.9}, init={'source': file})  # one step
  loop.train_and_evaluate(still, tmp_path / 'run')
  actual = final_state(tmp_path / 'run')
  expected = weights.to_variables(make_state(4), models.create('tiny', num_classes=4))
  for path, leaf in jax.tree_util.tree_leaves_with_path(expected['params']):
    for prefix in ("['params']", "['ema']['params']"):
      np.testing.assert_array_equal(actual[prefix + jax.tree_util.keystr(path)], leaf)
  assert json.loads((tmp_path / 'run/config.json').read_text())['init']['source'] == file


def test_a_checkpoint_wins_and_needs_no_source(config, tmp_path, file) -> None:
  first = merge(config, train={'epochs': 1}, init={'source': file})
  loop.train_and_evaluate(first, tmp_path / 'run')
  before = final_state(tmp_path / 'run')
  (tmp_path / 'tiny.pth').unlink()
  loop.train_and_evaluate(first, tmp_path / 'run')
  after = final_state(tmp_path / 'run')
  assert all(before[name].tobytes() == after[name].tobytes() for name in before)
  with pytest.raises(InputError, match=r'init.source: .*tiny.pth: cannot be read: No such file'):
    loop.train_and_evaluate(first, tmp_path / 'other')
  (tmp_path / 'run/checkpoints/6').rename(tmp_path / 'run/checkpoints/6.orbax-checkpoint-tmp')  # killed while it saved
  with pytest.raises(InputError, match=r'init.source: .*tiny.pth: cannot be read: No such file'):
    loop.train_and_evaluate(first, tmp_path / 'run')


def test_a_run_goes_on_to_other_classes_and_channels(config, tmp_path, npz) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'first')
  shutil.move(tmp_path / 'data.npz', tmp_path / 'first.npz')
  content = make_arrays((96, 40), shape=(8, 8, 1), classes=6)
  again = merge(
    config,
    data={'path': npz(**content)},
    init={'source': f'jaxres:{tmp_path / "first"}', 'new_head': True},
    optim={'frozen': ('(?!head/).*',)},
    train={'epochs': 1},
  )
  loop.train_and_evaluate(again, tmp_path / 'second')
  before, after = final_state(tmp_path / 'first'), final_state(tmp_path / 'second')
  name = "['params']['stem']['conv']['kernel']"
  np.testing.assert_allclose(after[name], before[name].sum(axis=2, keepdims=True), rtol=1e-6)
  name = "['batch_stats']['stage1']['block0']['bn2']['var']"
  assert after[name].tobytes() == before[name].tobytes()
  assert after["['params']['head']['fc']['kernel']"].shape == (8, 6)


def bad_sources(path) -> dict[str, tuple[str, str]]:
  """Write a file of each kind to the folder ``path``; return them and a part of what is printed, by kind."""
  good = path / 'good.pth'
  weights.write(good, make_state(4))
  (path / 'cut.pth').write_bytes(good.read_bytes()[:-200])
  (path / 'page.pth').write_text('<!doctype html><html>')
  write_zip(path / 'code.pth', {'archive/data.pkl': pickle.dumps(Call(print, 'run'), 2)})
  numbers = {
    'archive/data.pkl': tensor(shape=[4], strides=[1], kind='CharStorage'),
    'archive/data/0': b'0123456789012345',
  }
  write_zip(path / 'int8.pth', numbers)
  bomb = entry(good) | {'archive/data/0': b'\0' * (8 << 20)}
  write_zip(path / 'bomb.pth', bomb, compression=zipfile.ZIP_DEFLATED)
  weights.write(path / 'heads.pth', make_state(4) | {'aux.weight': np.zeros((4, 8), np.float32)})
  weights.write(path / 'classes.pth', make_state(9))
  return {
    'cut': (str(path / 'cut.pth'), 'cut off or damaged'),
    'HTML': (str(path / 'page.pth'), 'an HTML page, not weights'),
    'code': (str(path / 'code.pth'), 'nothing of it was run'),
    'int8': (str(path / 'int8.pth'), 'w is int8'),
    'bomb': (str(path / 'bomb.pth'), 'is compressed or encrypted'),
    'heads': (str(path / 'heads.pth'), 'unexpected: aux.weight; init.skip names what'),
    'classes': (str(path / 'classes.pth'), 'fc.weight [9, 8] instead of [4, 8], fc.bias [9] instead of [4]; init.skip'),
    'nothing': ('nothing.pth', 'No such file'),
    'name': ('torchvision:resnet_50', 'no published weights'),
    'run': ('jaxres:nothing', 'expected model.json, or config.json'),
  }


def test_a_bad_source_is_one_line_and_leaves_nothing(config, tmp_path, monkeypatch) -> None:
  monkeypatch.setattr(loop, 'restore_or_init', lambda *_: pytest.fail('too late'))
  for kind, (source, expected) in bad_sources(tmp_path).items():
    with pytest.raises(InputError) as caught:
      loop.train_and_evaluate(merge(config, init={'source': source}), tmp_path / 'run')
    line = str(caught.value)
    assert line.startswith('init.source: '), kind
    assert expected in line, kind
    assert '\n' not in line
    assert not (tmp_path / 'run').exists()


def test_the_program_ends_with_one_line_and_status_2(tmp_path) -> None:
  weights.write(tmp_path / 'other.pth', make_state(4))
  source = f'--config.init.source={tmp_path / "other.pth"}'
  done = run_main('--config', 'configs/digits.py', '--workdir', str(tmp_path / 'run'), source)
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1
  assert 'a ResNet of [1] basic blocks of [8] channels' in done.stderr
  assert not (tmp_path / 'run').exists()
