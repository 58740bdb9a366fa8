"""airbench's script: how many runs it does, on which images, and what is read from its table."""

import json
import sys

import pytest

from benchmarks.gpu import airbench
from tests.helpers import make_arrays


def test_its_table_is_read() -> None:
  output = """
-----------------------------------------------------------
|  run     |  epoch  |  val_acc  |  tta_val_acc  |  time_seconds  |
|  warmup  |      0  |   0.1000  |               |        9.0000  |
|          |   eval  |   0.1000  |       0.1100  |       10.0000  |
|       0  |      0  |   0.5000  |               |        1.0000  |
|          |   eval  |   0.9300  |       0.9410  |        2.5000  |
|       1  |      0  |   0.5000  |               |        1.0000  |
|          |   eval  |   0.9310  |       0.9390  |        2.7000  |
Mean: 0.9400    Std: 0.0014
"""
  rows = [{'seconds': 2.5, 'accuracy': 0.941}, {'seconds': 2.7, 'accuracy': 0.939}]
  assert airbench.parse(output) == rows
  assert airbench.parse(output.replace('time_seconds', 'total_time_seconds')) == rows
  assert airbench.with_runs('[main(run) for run in range(200)]', 3) == '[main(run) for run in range(3)]'
  with pytest.raises(SystemExit, match='found 0'):
    airbench.with_runs('main()', 3)


STAND_IN = """
import torch
train, test = (torch.load(f'cifar10/{split}.pt') for split in ('train', 'test'))
assert train['images'].dtype == torch.uint8 and train['labels'].dtype == torch.int64 and len(train['classes']) == 10
print('|  run  |  epoch  |  tta_val_acc  |  time_seconds  |')
for run in range(200):
  print(f"|  {run}  |  eval  |  {len(test['images'])}  |  {int(train['labels'].sum())}  |")
"""


@pytest.mark.torch
def test_it_is_given_our_images(tmp_path, npz, monkeypatch, capsys) -> None:
  pytest.importorskip('torch')
  (tmp_path / 'stand_in.py').write_text(STAND_IN)
  words = ['airbench.py', '--airbench', str(tmp_path), '--script', 'stand_in.py', '--data', npz(), '--runs', '2']
  monkeypatch.setattr(sys, 'argv', words)
  airbench.main()
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{')]
  arrays = make_arrays()
  assert [row['side'] for row in rows] == ['seed 0', 'seed 1', 'mean']
  assert {row['seconds'] for row in rows} == {arrays['train_y'].sum()}
  assert {row['accuracy'] for row in rows} == {len(arrays['test_x'])}
