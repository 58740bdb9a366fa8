import json

import numpy as np
import pytest
from scipy import stats

from jaxres import tasks
from jaxres.train import loop, seeds
from tests.helpers import merge

KNOWN = tasks.make('classification').metrics


def test_a_summary_is_scipys() -> None:
  values = [0.9, 0.92, 0.97, 0.93]
  mean, std, low, high, kept = seeds.summarize(values, 'test/loss', KNOWN)
  assert (mean, std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
  interval = stats.t.interval(0.95, df=3, loc=np.mean(values), scale=stats.sem(values))
  half = (interval[1] - interval[0]) / 2
  assert (low, high) == pytest.approx((mean * np.exp(-half / mean), mean * np.exp(half / mean)))
  assert kept == tuple(values)
  assert seeds.summarize([0.5] * 3, 'test/loss', KNOWN)[:4] == (0.5, 0.0, 0.5, 0.5)


def test_the_interval_of_a_fraction_is_one_of_the_logit() -> None:
  values = [0.9, 0.92, 0.97, 0.93]
  mean, _, low, high, _ = seeds.summarize(values, 'test/top1', KNOWN)
  half = stats.t.ppf(0.975, 3) * stats.sem(values) / (mean * (1 - mean))
  logit = lambda p: np.log(p / (1 - p))
  np.testing.assert_allclose([logit(low), logit(high)], [logit(mean) - half, logit(mean) + half])


@pytest.mark.parametrize('values', [(0.0, 0.0, 1.0), (0.001, 0.5, 0.999), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0,) * 3])
@pytest.mark.parametrize('name', ['test/top1', 'best/ema/val/top5', 'test/loss'])
def test_an_interval_stays_within_the_bounds(name: str, values: tuple[float, ...]) -> None:
  mean, _, low, high, _ = seeds.summarize(values, name, KNOWN)
  assert 0 <= low <= mean <= high
  assert high <= 1 or name == 'test/loss'


def test_intervals_cover_the_mean() -> None:
  """Of 400 trials of 5 seeds, 95 of 100 intervals hold it."""
  rng = np.random.default_rng(0)
  kept_value = 0
  for _ in range(400):
    actual = seeds.summarize(rng.normal(0.93, 0.01, 5).tolist(), 'test/top1', KNOWN)
    kept_value += actual.low <= 0.93 <= actual.high
  assert 0.92 < kept_value / 400 < 0.98


@pytest.mark.parametrize('name', ['train/lr', 'train/images_per_s', 'best/step', 'epoch'])
def test_what_is_no_score_has_no_interval(name: str) -> None:
  assert seeds.summarize([0.1, 0.2, 0.3, 0.4], name, KNOWN)[2:4] == (None, None)


def test_two_values_have_no_interval(capsys) -> None:
  actual = {'test/top1': seeds.summarize([0.2, 0.4], 'test/top1', KNOWN)}
  assert actual['test/top1'][2:4] == (None, None)
  seeds.print_summaries(actual, 'somewhere', 'seeds', KNOWN)
  assert 'no intervals: they take 3 seeds or more' in capsys.readouterr().out


def test_each_seed_is_a_separate_run(config: dict, tmp_path, capsys) -> None:
  config = merge(config, train={'epochs': 1, 'seed': 5}, data={'seed': 3})
  actual = seeds.train_and_evaluate(config, tmp_path, 2)
  stored = json.loads((tmp_path / 'seeds.json').read_text())
  assert stored['test/loss']['values'] == list(actual['test/loss'].values)
  assert len(set(actual['test/loss'].values)) == 2
  for k in range(2):
    written = json.loads((tmp_path / f'seed{k}/config.json').read_text())
    assert (written['train']['seed'], written['data']['seed']) == (5 + k, 3 + k)
    alone = merge(config, train={'seed': 5 + k}, data={'seed': 3 + k})
    assert loop.train_and_evaluate(alone, tmp_path / 'alone' / str(k))['test/loss'] == actual['test/loss'].values[k]
  shown = capsys.readouterr().out
  assert '2 seeds' in shown
  assert '95% interval' in shown


def test_a_dry_run_leaves_the_summary_as_it_was(config: dict, tmp_path) -> None:
  (tmp_path / 'seeds.json').write_text('kept')
  seeds.train_and_evaluate(merge(config, train={'dry_run': True}), tmp_path, 2)
  assert (tmp_path / 'seeds.json').read_text() == 'kept'
  assert (tmp_path / 'seed1/dry_run/config.json').exists()


def test_an_interrupted_series_continues(config: dict, tmp_path, monkeypatch) -> None:
  config = merge(config, train={'epochs': 1})
  real, calls = loop.train_and_evaluate, []

  def interrupt(*args):
    calls.append(args)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(*args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(loop, 'train_and_evaluate', interrupt)
    seeds.train_and_evaluate(config, tmp_path, 2)
  assert not (tmp_path / 'seeds.json').exists()
  kept = (tmp_path / 'seed0/metrics.jsonl').read_text()
  assert len(seeds.train_and_evaluate(config, tmp_path, 2)['test/top1'].values) == 2
  assert (tmp_path / 'seed0/metrics.jsonl').read_text() == kept
