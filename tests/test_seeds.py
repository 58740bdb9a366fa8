import json

import numpy as np
import pytest
from scipy import stats

from jaxres import seeds, train
from tests.conftest import merged


def test_a_summary_is_scipys() -> None:
  values = [0.9, 0.92, 0.97, 0.93]
  mean, std, low, high, kept = seeds.summarize(values)
  assert (mean, std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
  interval = stats.t.interval(0.95, df=3, loc=np.mean(values), scale=stats.sem(values))
  assert (low, high) == pytest.approx(interval)
  assert kept == tuple(values)
  assert seeds.summarize([0.5, 0.5])[:4] == (0.5, 0.0, 0.5, 0.5)


def test_each_seed_is_a_run_of_its_own(config: dict, tmp_path, capsys) -> None:
  config = merged(config, train={'epochs': 1, 'seed': 5}, data={'seed': 3})
  found = seeds.train_and_evaluate(config, tmp_path, 2)
  stored = json.loads((tmp_path / 'seeds.json').read_text())
  assert stored['test/loss']['values'] == list(found['test/loss'].values)
  assert len(set(found['test/loss'].values)) == 2
  for k in range(2):
    written = json.loads((tmp_path / f'seed{k}/config.json').read_text())
    assert (written['train']['seed'], written['data']['seed']) == (5 + k, 3 + k)
    alone = merged(config, train={'seed': 5 + k}, data={'seed': 3 + k})
    assert train.train_and_evaluate(alone, tmp_path / 'alone' / str(k))['test/loss'] == found['test/loss'].values[k]
  shown = capsys.readouterr().out
  assert '2 seeds' in shown
  assert '95% interval' in shown


def test_a_dry_run_leaves_the_summary_as_it_was(config: dict, tmp_path) -> None:
  (tmp_path / 'seeds.json').write_text('kept')
  seeds.train_and_evaluate(merged(config, train={'dry_run': True}), tmp_path, 2)
  assert (tmp_path / 'seeds.json').read_text() == 'kept'
  assert (tmp_path / 'seed1/dry_run/config.json').exists()


def test_an_interrupted_series_continues(config: dict, tmp_path, monkeypatch) -> None:
  config = merged(config, train={'epochs': 1})
  real, calls = train.train_and_evaluate, []

  def interrupt(*args):
    calls.append(args)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(*args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(train, 'train_and_evaluate', interrupt)
    seeds.train_and_evaluate(config, tmp_path, 2)
  assert not (tmp_path / 'seeds.json').exists()
  kept = (tmp_path / 'seed0/metrics.jsonl').read_text()
  assert len(seeds.train_and_evaluate(config, tmp_path, 2)['test/top1'].values) == 2
  assert (tmp_path / 'seed0/metrics.jsonl').read_text() == kept
