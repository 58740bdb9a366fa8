import json

import numpy as np
import pytest
from PIL import Image

from jaxres import cli
from jaxres.analysis import lr_find
from jaxres.errors import InputError


def test_the_moving_average_is_the_weighted_mean() -> None:
  losses = [3.0, 1.0, 2.0]
  weights = 0.9 ** np.array([2, 1, 0])
  assert lr_find.smooth(losses)[-1] == pytest.approx(np.average(losses, weights=weights))
  assert lr_find.smooth(losses)[0] == losses[0]


def test_the_suggestion_is_a_tenth_of_where_the_loss_is_lowest() -> None:
  rates = np.geomspace(1e-4, 10, 101)
  losses = list(1 + np.log10(rates / 1e-1) ** 2)
  result = lr_find.summarize(rates, losses, diverged=False)
  lowest = rates[int(np.argmin(result.smoothed))]
  assert 0.1 < lowest < 0.5  # the average lags behind
  assert result.suggestion == float(f'{lowest / 10:.1g}')
  assert lr_find.summarize(rates, list(np.arange(101.0)), diverged=False).suggestion is None


def test_one_program_and_a_rate_that_rises(config) -> None:
  result = lr_find.run(config, 1e-4, 1e5, 60)
  assert result.diverged
  assert 20 < len(result.rates) == len(result.losses) < 60
  assert result.rates[0] == pytest.approx(1e-4)
  assert np.all(np.diff(np.log(result.rates)) > 0)
  assert 1e-4 < result.suggestion < 1
  again = lr_find.run(config | {'optim': {'lr': 5.0, 'schedule': 'onecycle'}}, 1e-4, 1e5, 60)
  assert again == result  # the rate and the schedule of the config do not count


def test_ranges_that_are_none(config) -> None:
  with pytest.raises(InputError, match='expected 0 < lowest < highest, found 1 and 0.1'):
    lr_find.run(config, 1.0, 0.1)
  with pytest.raises(InputError, match='--steps: expected 5 or more, found 2'):
    lr_find.run(config, steps=2)


def test_the_tool_draws_and_suggests(config, tmp_path, tiny, capsys) -> None:
  (tmp_path / 'config.json').write_text(json.dumps(config))
  out = tmp_path / 'pictures/lr.png'
  words = ['--config', str(tmp_path / 'config.json'), '--out', str(out), '--steps', '40', '--highest', '100']
  assert cli.main(['lr-find', *words]) == 0
  assert 'suggestion, a tenth of that: --lr ' in capsys.readouterr().out
  with Image.open(out) as picture:
    assert picture.size[0] > 400
