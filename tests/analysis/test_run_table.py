import json
import os
import pathlib

import pytest

from jaxres import cli
from jaxres import config as config_lib
from jaxres.analysis import run_table
from jaxres.errors import InputError
from jaxres.runtime import lock


def make_run(path: pathlib.Path, rows: list[dict], **sections) -> pathlib.Path:
  (path / 'checkpoints').mkdir(parents=True)
  (path / 'config.json').write_text(config_lib.to_json(config_lib.make(**sections)))
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def evaluation(epoch: float, **scores: float) -> dict:
  return {'step': round(10 * epoch), 'epoch': epoch} | {name.replace('_', '/'): value for name, value in scores.items()}


@pytest.fixture
def runs(tmp_path) -> pathlib.Path:
  best = [evaluation(1, val_top1=0.5, test_top1=0.4), evaluation(2, val_top1=0.7, test_top1=0.6)]
  worse = evaluation(3, val_top1=0.6, test_top1=0.9)
  make_run(tmp_path / 'a', [*best, worse, {'step': 31, 'epoch': 3.1, 'train/loss': 1.0}], train={'epochs': 10.0})
  make_run(tmp_path / 'deep/b', [evaluation(10, test_top1=0.3)], train={'epochs': 10.0}, optim={'lr': 0.5})
  make_run(tmp_path / 'c', [*best, worse], train={'epochs': 10.0, 'patience': 1})
  make_run(tmp_path / 'a/dry_run', [evaluation(1, test_top1=1.0)])
  return tmp_path


def test_what_differs_what_was_reached_and_the_state(runs) -> None:
  rows, problems = run_table.read(runs)
  assert problems == []
  by_name = {row.path.name: row for row in rows}
  assert [row.path.name for row in rows] == ['a', 'c', 'b']
  assert all(row.fields.keys() == {'optim.lr', 'train.patience'} for row in rows)
  assert by_name['b'].fields['optim.lr'] == 0.5
  assert (by_name['a'].val, by_name['a'].test, by_name['a'].state) == (0.7, 0.6, 'stopped: 3 of 10 epochs')
  assert (by_name['b'].val, by_name['b'].test, by_name['b'].state) == (None, 0.3, 'finished')
  assert by_name['c'].state == 'finished early: 3 of 10 epochs'


def test_a_run_that_trains(runs) -> None:
  with lock.lock_workdir(runs / 'a'):
    rows, _ = run_table.read(runs / 'a')
  assert rows[0].state == 'running: 3 of 10 epochs'
  assert rows[0].fields == {}  # one run differs in nothing
  assert run_table.read(runs / 'a')[0][0].state == 'stopped: 3 of 10 epochs'


def test_a_damaged_run_is_told_and_the_others_are_shown(runs, capsys) -> None:
  (runs / 'a/config.json').write_text('{')
  assert cli.main(['runs', str(runs)]) == 1
  captured = capsys.readouterr()
  assert 'left out: ' in captured.err
  assert os.path.join('a', 'config.json') in captured.err
  assert '30.00%' in captured.out


@pytest.mark.parametrize('damage', ['utf-16', 'directory', 'garbage'])
def test_a_damaged_log_is_told(runs, capsys, damage: str) -> None:
  log = runs / 'deep/b/metrics.jsonl'
  content = log.read_bytes()
  log.unlink()
  if damage == 'directory':
    log.mkdir()
  else:
    log.write_bytes(content.decode().encode('utf-16') if damage == 'utf-16' else b'x\n' + content)
  run_table.read(runs)
  assert f'warning: {log}: ' in capsys.readouterr().err


def test_where_no_runs_are(tmp_path) -> None:
  with pytest.raises(InputError, match='no run in'):
    run_table.read(tmp_path)
  with pytest.raises(InputError, match='no such directory'):
    run_table.read(tmp_path / 'x')
