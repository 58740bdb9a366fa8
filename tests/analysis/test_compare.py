"""The tool on runs trained in seconds."""

import json
import pathlib

import numpy as np
import pytest

from jaxres import cli
from jaxres.train import loop, seeds
from tests.helpers import make_arrays, merge


def test_one_run(config, npz, tmp_path, capsys) -> None:
  names = ['ant', 'bee', 'cat', 'dog']
  config = merge(config, data={'path': npz(**make_arrays(), class_names=names), 'val': 0.25})
  end = loop.train_and_evaluate(config, tmp_path / 'run')
  capsys.readouterr()
  assert cli.main(['evaluate', str(tmp_path / 'run'), '--step=latest', '--out', str(tmp_path / 'scores.json')]) is None
  out = capsys.readouterr().out
  actual = json.loads((tmp_path / 'scores.json').read_text())
  local = actual['runs']['run']
  assert actual['ensemble'] is None
  assert local['top1'] == pytest.approx(end['test/top1'])
  assert local['loss'] == pytest.approx(end['test/loss'], rel=1e-4)
  assert local['temperature'] > 0
  assert f'{end["test/top1"]:.2%}' in out
  assert all(name in out for name in names)
  assert '40 test examples' in out
  assert cli.main(['evaluate', str(tmp_path / 'run'), '--split', 'val']) is None
  assert '24 val examples' in capsys.readouterr().out


def test_several_runs(config, tmp_path, capsys) -> None:
  for seed in (0, 1):
    loop.train_and_evaluate(merge(config, train={'seed': seed, 'epochs': 1 + seed}), tmp_path / f'seed{seed}')
  capsys.readouterr()
  cli.main(['evaluate', str(tmp_path), '--out', str(tmp_path / 'scores.json')])
  out = capsys.readouterr().out
  actual = json.loads((tmp_path / 'scores.json').read_text())
  assert list(actual['runs']) == ['seed0', 'seed1']
  assert all(word in out for word in ('seed0', 'seed1', 'ensemble', 'McNemar p ='))
  assert 'note: no temperature without validation examples' in out
  assert actual['ensemble']['examples'] == 40
  assert actual['pairs'][0]['runs'] == ['seed0', 'seed1']
  assert 'top-5' not in out  # of four classes
  for words in (['errors', str(tmp_path)], ['predict', str(tmp_path), '.'], ['convert', str(tmp_path), 'x']):
    (tmp_path / 'x.png').touch()
    with pytest.raises(SystemExit):
      cli.main([word if word != '.' else str(tmp_path / 'x.png') for word in words])
    expected = f'error: {tmp_path}: 2 runs are in it; name one: {tmp_path}/seed0 {tmp_path}/seed1\n'
    assert capsys.readouterr().err == expected


def test_a_series_of_seeds_has_mean_spread_and_interval(config, tmp_path, capsys) -> None:
  seeds.train_and_evaluate(merge(config, train={'epochs': 2}), tmp_path / 'five', 3)
  of_training = json.loads((tmp_path / 'five/seeds.json').read_text())
  capsys.readouterr()
  cli.main(['evaluate', str(tmp_path / 'five'), '--step=latest', '--out', str(tmp_path / 'scores.json')])
  out = capsys.readouterr().out
  actual = json.loads((tmp_path / 'scores.json').read_text())
  top1 = [local['top1'] for local in actual['runs'].values()]
  assert len(set(top1)) > 1
  series = actual['series']
  assert series['top-1']['mean'] == pytest.approx(np.mean(top1))
  assert series['top-1']['std'] == pytest.approx(np.std(top1, ddof=1))
  for row, metric in (('top-1', 'test/top1'), ('loss', 'test/loss')):
    expected = {name: of_training[metric][name] for name in ('mean', 'std', 'low', 'high')}
    assert series[row] == pytest.approx(expected, rel=1e-3)
  assert series['F1, macro']['mean'] == pytest.approx(np.mean([x['macro']['f1'] for x in actual['runs'].values()]))
  assert 'temperature' not in series
  assert 'mean of 3' in out
  assert 'note: mean of 3: of the runs, ± their standard deviation; 95 % interval of the mean' in ' '.join(out.split())
  cli.main(['report', str(tmp_path / 'five'), '--out', str(tmp_path / 'page.html')])
  page = (tmp_path / 'page.html').read_text()
  assert f'{series["top-1"]["mean"]:.2%} ± {series["top-1"]["std"]:.2%}' in page
  assert 'top-1, mean of 3' in page
  capsys.readouterr()
  cli.main(['evaluate', str(tmp_path / 'five'), '--data', config['data']['path'], '--out', f'{tmp_path}/data.json'])
  assert json.loads((tmp_path / 'data.json').read_text())['series'] == series
  capsys.readouterr()
  cli.main(['evaluate', f'{tmp_path}/five/seed0', f'{tmp_path}/five/seed2', '--out', f'{tmp_path}/two.json'])
  two = json.loads((tmp_path / 'two.json').read_text())['series']['top-1']
  assert two['mean'] == pytest.approx(np.mean(top1[::2]))
  assert (two['low'], two['high']) == (None, None)
  assert 'no interval of so few' in ' '.join(capsys.readouterr().out.split())


def test_an_output_that_is_the_data_of_the_run(config, tmp_path, capsys) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run')
  data = pathlib.Path(config['data']['path'])
  before = data.read_bytes()
  for tool in ('evaluate', 'report', 'errors'):
    capsys.readouterr()
    with pytest.raises(SystemExit):
      cli.main([tool, str(tmp_path / 'run'), '--out', str(data)])
    assert capsys.readouterr().err == f'error: --out: {data} is the data of the run; expected another file to write\n'
  assert data.read_bytes() == before


def test_a_file_that_cannot_be_written(config, tmp_path, capsys) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run')
  capsys.readouterr()
  with pytest.raises(SystemExit):
    cli.main(['evaluate', str(tmp_path / 'run'), '--out', '/dev/null/x.json'])
  assert capsys.readouterr().err == 'error: /dev/null/x.json: cannot write: Not a directory\n'
