"""When a run evaluates and saves, and what it remembers of its evaluations."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxres import data, schema
from jaxres.errors import InputError, print_status
from jaxres.train.options import Options

DRY_RUN_STEPS = 2
OVERFIT_STEPS = 200
MAX_STEPS, MAX_EVALUATIONS = 2**31 - 1, 1_000_000  # the step is an int32
_METRICS = schema.object_of(schema.Check('a number', lambda x: type(x) in (int, float)))  # which may be NaN
_COUNT = schema.integer(0, 2**31 - 1)
PROGRESS = {  # the fields of ``Progress``
  'last': _METRICS,
  'best': _METRICS,
  'stale': _COUNT,
  'partial': schema.either(_METRICS, schema.NOTHING),
  'rollbacks': _COUNT,
}


Score = Callable[[Mapping[str, float]], float | None]  # of the metrics of an evaluation; larger is better


class Plan(NamedTuple):
  """How long to train and when to evaluate and save, in steps; the last of ``eval_steps`` is the end."""

  total_steps: int  # of the learning-rate schedule
  steps_per_epoch: float
  eval_steps: tuple[int, ...]

  def segments(self, start: int, *, pending: bool = False) -> Iterator[tuple[int, int]]:
    """Yield ``(begin, end)`` of the steps between evaluations that are left behind step ``start``.

    Where that step's own evaluation is ``pending``, it is left too: the first segment has no steps.
    """
    first = 0 if pending else 1
    return itertools.pairwise([start, *(step for step in self.eval_steps if step >= start + first)])


def group_feeds(feeds: Iterable[Any], start: int, end: int, size: int, every: int) -> Iterator[tuple[int, Any]]:
  """Yield the feeds of steps ``start`` to ``end - 1`` stacked, ``size`` at a time, each with the step that it leads to.

  Where that many would pass ``end`` or a multiple of ``every`` they come one at a time, so that what is done there is
  on time, and no more than two shapes, and programs, are needed.
  """
  feeds, step = iter(feeds), start
  while step < end:
    due = min(end, (step // every + 1) * every)
    count = size if step + size <= due else 1
    step += count
    yield step, jax.tree.map(_stack, *itertools.islice(feeds, count))


def _stack(*arrays: np.ndarray) -> np.ndarray:
  return np.stack(arrays) if len(arrays) > 1 else arrays[0][None]  # a view: a streamed batch is large


class Progress(NamedTuple):
  """What keep-best and early stopping must know; saved beside the state."""

  last: dict[str, float]  # metrics of the last evaluation
  best: dict[str, float]  # metrics of the evaluation that scored best, and its step
  stale: int  # evaluations since then
  partial: dict[str, float] | None = None  # sums of the training metrics since the last row, where a signal came
  rollbacks: int = 0  # how often the learning rate was halved, see ``train.max_rollbacks``

  def advance(self, step: int, scores: dict[str, float], score_of: Score) -> 'Progress':
    """Return the progress after an evaluation at ``step`` that gave ``scores``; ``score_of`` says which are better."""
    score, best = score_of(scores), score_of(self.best)
    if score is None:
      return self._replace(last=scores, best={}, stale=0, partial=None)
    if best is None or score > best:
      return self._replace(last=scores, best={'step': step} | scores, stale=0, partial=None)
    return self._replace(last=scores, stale=self.stale + 1, partial=None)

  def metrics(self) -> dict[str, float]:
    """Return the last metrics, and the best as ``best/...``."""
    return self.last | {f'best/{name}': value for name, value in self.best.items()}


def read_progress(content: Mapping[str, Any], where: object) -> Progress:
  """Return what a checkpoint says of the progress; the digest beside it holds for the values.

  Raises:
    DamagedError: it has other fields than this jaxres knows.
  """
  fields = schema.check_fields(content, PROGRESS, where, optional=('partial', 'rollbacks'), closed=True, fix='')
  return Progress(**fields)


def make_plan(train: data.Pipeline, options: Options) -> Plan:
  """Return when to evaluate and save a training on ``train``.

  Raises:
    InputError: it would never end, or one step has more examples than all of the training.
  """
  epochs = options.epochs
  if options.overfit_one_batch:  # the full schedule in a few steps
    return Plan(OVERFIT_STEPS, OVERFIT_STEPS / epochs, (OVERFIT_STEPS,))
  check_batch(train.batch_size, train.size, epochs)
  steps_per_epoch = train.size / train.batch_size
  length, interval = epochs * steps_per_epoch, options.eval_every_epochs * steps_per_epoch
  if length > MAX_STEPS or length > MAX_EVALUATIONS * interval:
    count = length / interval if interval else math.inf
    problem = f'{epochs:g} epochs are {length:,.10g} steps and {count:,.10g} evaluations'
    raise InputError('train.epochs', problem, expected=f'at most {MAX_STEPS:,} and {MAX_EVALUATIONS:,}')
  total = max(1, round(length))
  if options.dry_run:
    return Plan(total, steps_per_epoch, (DRY_RUN_STEPS,))
  between = {round(k * interval) for k in range(1, int(total / interval) + 1)}
  return Plan(total, steps_per_epoch, tuple(sorted(step for step in between | {total} if 0 < step <= total)))


def check_batch(batch_size: int, size: int, epochs: float) -> None:
  """Say where a batch has more examples than the training split.

  Raises:
    InputError: it has more than all the epochs together: the first step would already be too long.
  """
  if batch_size <= size:
    return
  problem = f'a batch of {batch_size:,} has more than the {size:,} training examples'
  fix = f'set data.batch_size to at most {size:,}'
  if epochs * size < batch_size:
    raise InputError('data.batch_size', f'{problem} in {epochs:g} epochs: less than one step', fix=fix)
  print_status(f'data.batch_size: {problem}: it holds examples twice; {fix}')
