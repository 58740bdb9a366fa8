"""A log that was damaged: it never blocks a resume, and no row of it is lost."""

import json
import os

import pytest

from jaxres import tasks, workdir
from jaxres.log import rows
from jaxres.log import run_log as run_log_lib
from jaxres.log.curves import draw_curves
from tests.mutations import ODD_FILES, ROWS, limited

DAMAGED = [
  b'', b'garbage', b'{"step": ', b'{"epoch": 1.0}', b'[1, 2]', b'{"step": true, "epoch": 1}',
  b'{"step": 1e3, "epoch": 1}',
  b'{"step": ' + b'7' * 400 + b', "epoch": 1}', b'\xff\xfe\x00', b'[' * 60_000, b'x' * 70_000,
  b'{"step": -1, "epoch": 1}',
]  # fmt: skip


@pytest.mark.parametrize('bad', DAMAGED, ids=range(len(DAMAGED)))
def test_a_log_never_blocks_a_resume_and_no_row_is_lost(tmp_path, bad: bytes, capsys) -> None:
  lines = ROWS.split(b'\n')
  raw = b'\n'.join([*lines[:2], bad, *lines[2:]])
  (tmp_path / 'metrics.jsonl').write_bytes(raw)
  with run_log_lib.RunLog(tmp_path, 40, 60, 20.0) as run_log:
    run_log.write(50, {'train/loss': 0.25})
  actual = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in actual] == [10, 20, 30, 40, 50]
  assert actual[:4] == [json.loads(line) for line in lines[:4]]
  output = capsys.readouterr().out
  if bad:
    assert (tmp_path / 'metrics.jsonl.bad').read_bytes() == raw
    assert 'metrics.jsonl: left out: line 3: ' in output.replace('\n', '')
  else:
    assert 'left out' not in output
  assert workdir.read_metrics(tmp_path)[-1] == {'step': 50, 'epoch': 2.5, 'train/loss': 0.25}
  assert draw_curves(tmp_path, tasks.make('classification').metrics, 'top1').is_file()


@pytest.mark.parametrize('odd', ODD_FILES)
def test_a_log_that_is_no_file_is_put_aside(tmp_path, odd: str, capsys) -> None:
  ODD_FILES[odd](tmp_path / 'metrics.jsonl')
  with limited(), run_log_lib.RunLog(tmp_path, 40, 60, 20.0) as run_log:
    run_log.write(50, {'train/loss': 0.25})
  assert json.loads((tmp_path / 'metrics.jsonl').read_text())['step'] == 50
  assert os.path.lexists(tmp_path / 'metrics.jsonl.bad')
  assert 'cannot be read' in capsys.readouterr().out


def test_a_last_row_without_its_end_is_kept_where_it_is_complete(tmp_path) -> None:
  path = tmp_path / 'metrics.jsonl'
  for raw, steps in ((ROWS[:-1], 6), (ROWS[:-2], 5), (ROWS + b'{"st', 6), (ROWS.replace(b'\n', b'\r\n'), 6)):
    path.write_bytes(raw)
    assert (len(rows.read(path)[0]), rows.read(path)[1]) == (steps, '')
    assert rows.cut(path, 60)[1] == ''
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
      json.loads(line) for line in ROWS.splitlines()[:steps]
    ]


def test_values_that_are_no_numbers_stay_in_the_file_and_out_of_the_curves(tmp_path) -> None:
  path = tmp_path / 'metrics.jsonl'
  raw = b'{"step": 1, "epoch": 0.1, "test/loss": NaN, "test/top1": 0.5, "train/loss": 1e300, "note": "x"}\n'
  path.write_bytes(raw)
  assert rows.read(path) == ([{'step': 1, 'epoch': 0.1, 'test/top1': 0.5}], '')
  rows.cut(path, 1)
  assert path.read_bytes() == raw
  assert draw_curves(tmp_path, tasks.make('classification').metrics, 'top1').is_file()


# checkpoints
