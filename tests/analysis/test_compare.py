"""The tool on runs trained in seconds."""

import json

import pytest

from jaxres import cli
from jaxres.train import loop
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


def test_a_file_that_cannot_be_written(config, tmp_path, capsys) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run')
  capsys.readouterr()
  with pytest.raises(SystemExit):
    cli.main(['evaluate', str(tmp_path / 'run'), '--out', '/dev/null/x.json'])
  assert capsys.readouterr().err == 'error: /dev/null/x.json: cannot write: Not a directory\n'
