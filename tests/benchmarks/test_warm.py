"""Trainings of several seeds in one process."""

import pytest

from benchmarks import warm
from jaxres.train import loop


def test_a_warm_training_is_the_run_that_it_stands_for(config: dict, tmp_path) -> None:
  config['tta'] = {'flip': True}
  config['train']['seed'], config['data']['seed'] = 1, 1
  expected = loop.train_and_evaluate(config, tmp_path / 'run')
  config['train']['seed'], config['data']['seed'] = 0, 0
  first, second = warm.trainings(config, 'tta/test/top1', 2)
  assert second['accuracy'] == pytest.approx(expected['tta/test/top1'])
  assert first['steps'] == second['steps'] == 24
  assert second['seconds'] > 0
  with pytest.raises(SystemExit, match="'test/top7' was never measured; there are test/loss, test/top1"):
    next(warm.trainings(config, 'test/top7', 1))
