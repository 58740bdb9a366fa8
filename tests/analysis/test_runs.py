"""Runs trained in seconds on arrays, and what tools read of them."""

import html
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from jaxres import cli, data
from jaxres.analysis import runs
from jaxres.errors import InputError
from jaxres.train import loop
from tests.helpers import make_arrays, merge


@pytest.fixture
def trained(config, tmp_path) -> str:
  loop.train_and_evaluate(merge(config, data={'val': 0.25}), tmp_path / 'run')
  return str(tmp_path / 'run')


def last_row(path: str) -> dict:
  return json.loads((pathlib.Path(path) / 'metrics.jsonl').read_text().splitlines()[-1])


@pytest.mark.parametrize('batch_size', [None, 7, 64])
def test_outputs_are_what_training_evaluated(trained, batch_size) -> None:
  (run,) = runs.read_runs([trained], step='latest')
  assert run.name == 'run'
  for split, size in (('val', 24), ('test', 40)):
    actual = runs.predict_split(run, split, batch_size)
    assert actual.logits.shape == (size, 4)
    assert (actual.logits.argmax(1) == actual.labels).mean() == pytest.approx(last_row(trained)[f'{split}/top1'])
  np.testing.assert_array_equal(actual.labels, make_arrays()['test_y'])
  fc = jax.tree.map(np.asarray, run.variables['params']['head']['fc'])
  np.testing.assert_allclose(actual.features @ fc['kernel'] + fc['bias'], actual.logits, rtol=1e-4, atol=1e-5)


def test_images_are_those_that_evaluation_sees(config, npz) -> None:
  index = np.array([3, 0, 39])
  expected = make_arrays()['test_x'][index]
  for pipeline in ('resident', 'stream'):
    dataset = data.load('arrays', path=npz(), batch_size=16, pipeline=pipeline)
    np.testing.assert_array_equal(dataset.test.get_images(index), expected)
    assert dataset.test.get_images(index[:0]).shape == (0, 8, 8, 3)


def test_data_that_runs_share_is_read_once(trained, config, tmp_path, monkeypatch) -> None:
  other = merge(config, data={'val': 0.25}, train={'seed': 1})
  loop.train_and_evaluate(other, tmp_path / 'other')
  loads = []
  load = data.load
  monkeypatch.setattr(data, 'load', lambda **fields: loads.append(fields) or load(**fields))
  first, second = runs.read_runs([trained, str(tmp_path / 'other')])
  assert len(loads) == 1
  assert first.dataset is second.dataset
  assert (first.name, second.name) == ('run', 'other')


def test_data_that_has_moved(trained, config, tmp_path) -> None:
  moved = tmp_path / 'moved.npz'
  pathlib.Path(config['data']['path']).rename(moved)
  with pytest.raises(InputError, match='no such file'):
    runs.read_runs([trained])
  (run,) = runs.read_runs([trained], data_path=str(moved))
  assert runs.predict_split(run, 'test').logits.shape == (40, 4)


def test_bad_input_is_one_line(trained, config, npz, tmp_path, capsys) -> None:
  with pytest.raises(InputError, match='nowhere: no run there; expected a workdir'):
    runs.read_runs([str(tmp_path / 'nowhere')])
  (tmp_path / 'started').mkdir()
  (tmp_path / 'started/config.json').write_text((pathlib.Path(trained) / 'config.json').read_text())
  with pytest.raises(InputError, match='no checkpoint there'):
    runs.read_runs([str(tmp_path / 'started')])
  with pytest.raises(InputError, match='a run is named twice'):
    runs.read_runs([trained, trained])
  (run,) = runs.read_runs([trained])
  with pytest.raises(InputError, match='no validation split'):
    runs.predict_split(run._replace(dataset=run.dataset._replace(val=None)), 'val')
  broken = jax.tree.map(lambda leaf: leaf * np.nan, run.variables)
  with pytest.raises(InputError, match='logits that are not numbers for 40 of 40 test examples, the first 0'):
    runs.predict_split(run._replace(variables=broken), 'test')
  npz(**make_arrays(classes=3))
  with pytest.raises(InputError, match='the data is not that of the run: class_names was .* there and is'):
    runs.read_runs([trained])
  with pytest.raises(SystemExit) as caught:
    cli.main(['evaluate', trained, '--batch_size', '0'])
  assert caught.value.code == 2
  assert capsys.readouterr().err == 'error: --batch_size: expected 1 or more, found 0\n'


@pytest.mark.parametrize('tool', ['evaluate', 'report', 'errors', 'explain'])
def test_a_run_without_a_checkpoint_is_one_line(tool: str, trained, tmp_path, capsys) -> None:
  (tmp_path / 'started').mkdir()
  for name in ('config.json', 'data.json'):
    (tmp_path / 'started' / name).write_text((pathlib.Path(trained) / name).read_text())
  capsys.readouterr()
  with pytest.raises(SystemExit) as caught:
    cli.main([tool, str(tmp_path / 'started'), *(['image.png'] if tool == 'explain' else [])])
  assert caught.value.code == 2
  assert re.fullmatch(r'error: .*started.*: no checkpoint there.*\n', capsys.readouterr().err)


def test_a_split_of_one_class_and_classes_without_examples(config, npz, tmp_path, capsys) -> None:
  """They are no mistakes of the run: what is undefined is named, and the rest is told."""
  arrays = make_arrays()
  kept = arrays['test_y'] == 1
  arrays |= {name: arrays[name][kept] for name in ('test_x', 'test_y')}
  names = ['ant', 'bee', 'cat', 'dog']
  loop.train_and_evaluate(merge(config, data={'path': npz(**arrays, class_names=names)}), tmp_path / 'run')
  expected = (
    'no example of ant, cat, dog: recall, F1 and AUC are undefined there, and left out of the means',
    "every example is 'bee': ROC-AUC is undefined",
  )
  capsys.readouterr()
  cli.main(['evaluate', str(tmp_path / 'run')])
  out = ' '.join(capsys.readouterr().out.split())
  assert all(f'note: {note}' in out for note in expected)
  cli.main(['report', str(tmp_path / 'run')])
  text = html.unescape((tmp_path / 'run/report.html').read_text())
  assert all(f'<li>{note}</li>' in text for note in expected)
  cli.main(['errors', str(tmp_path / 'run')])
  assert 'hardest classes, by recall on the test split: bee ' in capsys.readouterr().out


def test_runs_on_other_examples_are_not_compared(trained) -> None:
  (run,) = runs.read_runs([trained])
  labels = np.arange(4)
  runs.check_same_examples([run, run], [labels, labels], 'test')
  with pytest.raises(InputError, match='have other test examples'):
    runs.check_same_examples([run, run], [labels, labels[::-1]], 'test')
  other = run._replace(dataset=run.dataset._replace(info=run.dataset.info._replace(class_names=('x',))))
  with pytest.raises(InputError, match='have other classes: x and 0, 1, 2, 3'):
    runs.check_same_examples([run, other], [labels, labels], 'test')
