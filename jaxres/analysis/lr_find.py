"""The range test of the learning rate: a short training whose rate keeps rising (Smith 2015, arXiv 1506.01186)."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxres import config as config_lib
from jaxres import files
from jaxres.errors import InputError, check_range, make_progress_printer
from jaxres.runtime.compiler import enable_compilation_cache
from jaxres.runtime.memory import explain_oom, keep_freed_memory
from jaxres.train.plan import group_feeds
from jaxres.train.setup import make_setup
from jaxres.train.step import Hyperparameters

SMOOTHING = 0.9  # of the moving average of the losses
DIVERGED = 4.0  # times the lowest smoothed loss: the test ends
TELL_SECONDS = 5.0  # from a line on the progress to the next
DIVISOR = 10.0  # the suggestion is the rate of the lowest loss over this: what is still stable in a long training
MIN_STEPS = 5


class RangeTest(NamedTuple):
  """What the range test measured."""

  rates: tuple[float, ...]  # of each step
  losses: tuple[float, ...]  # nats, of each step's batch
  smoothed: tuple[float, ...]  # nats, their moving average without its bias to 0
  suggestion: float | None  # None where the loss never fell
  diverged: bool


def run(config: Mapping[str, Any], lowest: float = 1e-5, highest: float = 10.0, steps: int = 100) -> RangeTest:
  """Return the losses of one training whose learning rate rises from ``lowest`` to ``highest``, step by step.

  It ends where the loss is ``DIVERGED`` times its lowest, or not finite. The rate is an argument of the compiled step,
  so one program does it all. Nothing is saved.

  Args:
    config: of ``jaxres.config.make``; of its learning rate, schedule and length nothing counts.
    lowest: the first rate.
    highest: the last rate.
    steps: how many, 5 or more.

  Raises:
    InputError: the rates or steps are out of range, or the config cannot be used.
  """
  if not 0 < lowest < highest < float('inf'):
    raise InputError('--lowest, --highest', expected='0 < lowest < highest', found=f'{lowest:g} and {highest:g}')
  check_range('--steps', steps, low=MIN_STEPS)
  keep_freed_memory()
  enable_compilation_cache()
  sections = config_lib.to_dict(config_lib.complete(config))
  sections['optim'] |= {'lr': 1.0, 'schedule': 'constant', 'warmup_epochs': 0.0, 'milestones': ()}
  setup = make_setup(sections)
  setup.dataset.place(setup.mesh)
  state = setup.create(setup.key)
  rates = np.geomspace(lowest, highest, steps)
  losses: list[float] = []
  tell = make_progress_printer('lr-find:', TELL_SECONDS)
  with explain_oom(f'a step of {setup.dataset.train.batch_size} examples', 'use a smaller data.batch_size'):
    for step, feeds in group_feeds(setup.feeds(0, steps), 0, steps, 1, steps):
      state, sums = setup.take_steps(state, feeds, Hyperparameters(np.float32(rates[step - 1])))
      if float(sums['bad']):
        break
      losses.append(float(sums['loss']) / float(sums['count']))
      tell(f'step {step:,} of {steps:,}, rate {rates[step - 1]:.2g}, loss {losses[-1]:.3f}')
      if smooth(losses)[-1] > DIVERGED * min(smooth(losses)):
        break
  return summarize(rates[: len(losses)], losses, diverged=len(losses) < steps)


def summarize(rates: np.ndarray, losses: list[float], *, diverged: bool) -> RangeTest:
  """Return the range test of ``losses`` at ``rates``, with its suggestion.

  Args:
    rates: float ``[N]``, rising.
    losses: nats, of each.
    diverged: it ended before its last step.
  """
  smoothed = smooth(losses)
  best = int(np.argmin(smoothed)) if losses else 0
  suggestion = float(f'{rates[best] / DIVISOR:.1g}') if best else None
  return RangeTest(tuple(map(float, rates)), tuple(losses), tuple(smoothed), suggestion, diverged)


def smooth(losses: list[float]) -> list[float]:
  """Return the moving average of ``losses``, divided by the weights that it has given out so far."""
  average, smoothed = 0.0, list[float]()
  for number, loss in enumerate(losses, 1):
    average = SMOOTHING * average + (1 - SMOOTHING) * loss
    smoothed.append(average / (1 - SMOOTHING**number))
  return smoothed


def draw(result: RangeTest, path: pathlib.Path) -> None:
  """Draw losses over rates, with the suggestion as a line."""
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  axes.plot(result.rates, result.losses, alpha=0.35, label='loss of the batch')
  axes.plot(result.rates, result.smoothed, label='smoothed')
  if result.suggestion:
    axes.axvline(result.suggestion, color='black', linestyle='--', label=f'suggestion {result.suggestion:g}')
  axes.set(xscale='log', xlabel='learning rate', ylabel='training loss')
  if result.smoothed:
    low, high = min(result.smoothed), max(result.smoothed[0], min(result.smoothed))
    axes.set_ylim(low - 0.2 * (high - low) - 0.01, high + 0.5 * (high - low) + 0.01)
  axes.grid(alpha=0.3)
  axes.legend()
  picture = io.BytesIO()
  figure.savefig(picture, dpi=120)
  files.write_atomic(path, picture.getvalue())
