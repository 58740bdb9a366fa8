"""Running means of the training metrics."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxres import metrics
from jaxres.log import run_log as run_log_lib

REFRESH_SECONDS = 0.25


class Meter:
  """Running sums of the training metrics, fetched from the device a few times a second, never once a step.

  Fetching waits for the device, so the newest step is left in flight until its number is needed.
  """

  def __init__(
    self,
    run_log: run_log_lib.RunLog,
    lr_schedule: Callable[[int], Any],
    every: int,
    partial: Mapping[str, float] | None = None,
    means: metrics.Means = metrics.divide_by_count,
  ):
    """Log to ``run_log`` every ``every`` steps, with the learning rate that ``lr_schedule`` gives for a step.

    ``partial`` are the ``totals`` of a run that stopped between two rows; ``means`` are the task's.
    """
    self._log, self._rate, self._every, self._to_means = run_log, lr_schedule, every, means
    self._pending: list[metrics.Sums] = []
    self._total = dict(partial or {})
    self._clock: float | None = None
    self.finite = True  # of the steps that were fetched; what is behind one that is not is not counted
    self._uncounted, self._shown = self._total.get('count', 0.0), 0.0

  def add(self, step: int, sums: metrics.Sums, *, last: bool) -> None:
    """Take the sums of the batch that ended step ``step``.

    Every ``every`` steps a row of their means is written; at the ``last`` the row is left to the caller.
    """
    if self._clock is None:  # the first step compiles: the clock starts behind it
      jax.block_until_ready(sums)
      self._log.first_step()
      self._restart_clock(uncounted=self._uncounted + float(sums['count']))
    self._pending.append(sums)
    due = last or step % self._every == 0
    if due or (time.monotonic() - self._shown > REFRESH_SECONDS and jax.process_count() == 1):  # all stop at one step
      self._drain(leave=0 if due else 1)
      self._log.show(step, self._means())
    if due and not last and self.finite:
      self._log.write(step, self.row(step))
      self._total = {}
      self._restart_clock()

  def row(self, step: int) -> dict[str, float]:
    """Return the means of the steps since the last row."""
    return self._means() | {'train/lr': float(self._rate(step - 1))}

  def totals(self) -> dict[str, float]:
    """Return the sums of the steps since the last row."""
    return dict(self._total)

  def drain(self) -> None:
    """Fetch what is in flight, so that ``finite`` and ``totals`` are of every step that was added."""
    self._drain(leave=0)

  def _restart_clock(self, uncounted: float = 0.0) -> None:
    self._clock, self._uncounted = time.monotonic(), uncounted

  def _drain(self, leave: int) -> None:
    ready = len(self._pending) - leave
    fetched, self._pending = jax.device_get(self._pending[:ready]), self._pending[ready:]
    for part in fetched:
      self.finite &= not part.pop('bad', 0)  # see ``step.keep_if_finite``
      for name, value in part.items() if self.finite else ():
        self._total[name] = self._total.get(name, 0.0) + float(value)
    self._shown = time.monotonic()

  def _means(self) -> dict[str, float]:
    if not self._total:
      return {}
    means = metrics.compute_means(self._total, 'train', self._to_means)
    images = self._total['count'] - self._uncounted
    if images and self._clock is not None:
      means['train/images_per_s'] = images / (time.monotonic() - self._clock)
    return means
