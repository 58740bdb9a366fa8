import math

import numpy as np
import pytest

from jaxres import data, tasks
from jaxres.data import resident
from jaxres.errors import InputError
from jaxres.train.options import Options
from jaxres.train.plan import Plan, Progress, group_feeds, make_plan


def score(scores: dict[str, float]) -> float | None:
  return scores.get('ema/val/top1', scores.get('val/top1'))


def test_a_plan_evaluates_at_every_epoch_and_at_the_end() -> None:
  pipeline = resident.Resident(data.Arrays(np.zeros((100, 1, 1, 1), np.uint8), np.zeros(100)), batch_size=16, seed=0)
  plan = make_plan(pipeline, Options(epochs=2.5))
  assert plan == Plan(16, 6.25, (6, 12, 16))
  assert list(plan.segments(0)) == [(0, 6), (6, 12), (12, 16)]
  assert list(plan.segments(7)) == [(7, 12), (12, 16)]
  assert list(plan.segments(16)) == []
  assert make_plan(pipeline, Options(epochs=1.0, eval_every_epochs=0.5)).eval_steps == (3, 6)


def test_a_batch_of_more_than_all_examples(capsys) -> None:
  def make(size: int, batch_size: int, epochs: float) -> Plan:
    images = data.Arrays(np.zeros((size, 1, 1, 1), np.uint8), np.zeros(size))
    return make_plan(resident.Resident(images, batch_size=batch_size, seed=0), Options(epochs=epochs))

  with pytest.raises(InputError, match='100,000 has more than the 1,438 training .* to at most 1,438'):
    make(1438, 100_000, 30)
  with pytest.raises(InputError, match='less than one step'):
    make(16, 17, 1)
  assert capsys.readouterr().err == ''
  assert make(16, 20, 30).total_steps == 24
  assert 'a batch of 20 has more than the 16 training examples' in capsys.readouterr().err
  assert make(16, 16, 1).total_steps == 1
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
  ('start', 'end', 'size', 'every', 'expected'),
  [
    (0, 5, 1, 50, [1, 2, 3, 4, 5]),
    (0, 25, 10, 10, [10, 20, 21, 22, 23, 24, 25]),
    (7, 22, 4, 10, [8, 9, 10, 14, 18, 19, 20, 21, 22]),  # a row of the log at 10 and at 20
    (3, 3, 4, 10, []),
  ],
)
def test_groups_end_where_something_is_due(start: int, end: int, size: int, every: int, expected: list[int]) -> None:
  feeds = ({'index': np.array([step, -step])} for step in range(start, end))
  groups = list(group_feeds(feeds, start, end, size, every))
  assert [step for step, _ in groups] == expected
  assert {len(group['index']) for _, group in groups} <= {1, size}
  if groups:
    steps = np.concatenate([group['index'] for _, group in groups])
    np.testing.assert_array_equal(steps, [[step, -step] for step in range(start, end)])


def test_progress_watches_the_moving_average_where_there_is_one() -> None:
  progress = Progress({}, {}, 0)
  for step, (raw, averaged) in enumerate([(0.9, 0.2), (0.1, 0.6), (0.95, 0.5)], 1):
    progress = progress.advance(step, {'val/top1': raw, 'ema/val/top1': averaged}, score)
  assert progress.best == {'step': 2, 'val/top1': 0.1, 'ema/val/top1': 0.6}
  assert progress.stale == 1
  assert progress.metrics()['best/ema/val/top1'] == 0.6


def test_what_is_no_number_is_never_the_best() -> None:
  score_of = tasks.make('classification').score
  progress, stale = Progress({}, {}, 0), []
  for step, top1 in enumerate([math.nan, 0.2, math.nan, 0.1], 1):
    progress = progress.advance(step, {'val/top1': top1}, score_of)
    stale.append(progress.stale)
  assert progress.best == {'step': 2, 'val/top1': 0.2}
  assert stale == [0, 0, 1, 2]
  once = Progress({}, {}, 0).advance(1, {'val/top1': math.nan}, score_of)
  assert once.advance(2, {'val/top1': math.nan}, score_of).stale == 1


def test_progress_watches_validation_and_never_test() -> None:
  progress = Progress({}, {}, 0)
  for step, top1 in enumerate([0.0, 0.0, 0.3, 0.3], 1):
    progress = progress.advance(step, {'val/top1': top1, 'test/top1': 1.0 / step, 'ema/test/top1': 1.0 / step}, score)
  assert (progress.best['step'], progress.stale) == (3, 1)
  progress = Progress({}, {}, 0).advance(1, {'test/top1': 0.5, 'ema/test/top1': 0.5}, score)
  assert progress == Progress({'test/top1': 0.5, 'ema/test/top1': 0.5}, {}, 0)


@pytest.mark.parametrize('dry_run', [False, True])
@pytest.mark.parametrize('fields', [{'epochs': 1e308}, {'epochs': 1e300}, {'epochs': 1.0, 'eval_every_epochs': 5e-324}])
def test_a_plan_of_more_steps_than_can_be_counted_is_one_short_line(fields, dry_run: bool) -> None:
  pipeline = resident.Resident(data.Arrays(np.zeros((100, 1, 1, 1), np.uint8), np.zeros(100)), batch_size=16, seed=0)
  with pytest.raises(InputError, match='train.epochs: .* steps and .* evaluations; expected at most') as caught:
    make_plan(pipeline, Options(**fields, dry_run=dry_run))
  assert len(str(caught.value)) < 200
