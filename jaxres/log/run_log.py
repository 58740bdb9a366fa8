"""What a run leaves behind and what its user sees: metrics.jsonl, event files, the curves, a progress bar, tables."""

import collections
import json
import pathlib
import statistics
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxres import files, metrics
from jaxres.log import rows
from jaxres.log.console import console, one_line, optional
from jaxres.log.tensorboard import EventFile
from jaxres.runtime import distributed

MEDIAN_ROWS, MIN_ROWS = 21, 5  # of the log, that a loss is compared with
LINE_SECONDS = 10.0  # from a line on the progress to the next, where there is no terminal: in files, pipes, notebooks


class RunLog:
  """The log of one run: a context that holds the progress bar.

  Of several processes only the first has files.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    start: int,
    total: int,
    steps_per_epoch: float,
    spike_factor: float = 0.0,
    known: Mapping[str, metrics.Metric] = MappingProxyType({}),
    monitor: str = 'loss',
  ):
    """Open the log of a run that is at step ``start`` of ``total``; later rows, of a run that was killed, go.

    A row whose training loss is more than ``spike_factor`` times the median of those before it is warned of; 0 is not.
    ``known`` are the metrics of the task, of which the bar shows the loss and ``monitor``.
    """
    self.steps_per_epoch = steps_per_epoch
    self._known, self._monitor = known, monitor
    leads = distributed.is_main_process()
    earlier = cut_rows(workdir / 'metrics.jsonl', start) if leads else []
    self._rows = workdir / 'metrics.jsonl' if leads else None
    self._events = EventFile(workdir, start) if leads and optional('tensorboardX', 'event files') else None
    self._spike_factor = spike_factor
    losses = (row['train/loss'] for row in earlier[-MEDIAN_ROWS:] if 'train/loss' in row)
    self._losses = collections.deque(losses, MEDIAN_ROWS)
    columns = (
      TextColumn('{task.description}', markup=False),
      BarColumn(bar_width=None),
      MofNCompleteColumn(),
      TextColumn('{task.fields[shown]}', markup=False),
      TimeRemainingColumn(),
    )
    self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    self._task = self._bar.add_task('compiling', total=total, completed=start, shown='')
    self._start, self._total = start, total
    self._opened = self._printed = time.monotonic()
    self._first: float | None = None  # when the first step was done

  def __enter__(self) -> Self:
    self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.stop()

  def show(self, step: int, means: Mapping[str, float]) -> None:
    """Move the bar to ``step``, with the training metrics ``means`` beside it; empty ones leave those of before."""
    self._bar.update(self._task, completed=step, description=f'epoch {step / self.steps_per_epoch:.1f}')
    if means:
      shown = '  '.join(self._describe(means))
      self._bar.update(self._task, shown=shown)
      self._line(step, shown)

  def _describe(self, means: Mapping[str, float]) -> Iterator[str]:
    """Yield what the bar says of ``means``: the speed, the loss and what is monitored, as far as they are there."""
    if 'train/images_per_s' in means:
      yield f'{means["train/images_per_s"]:,.0f} images/s'
    for name in dict.fromkeys(('loss', self._monitor)):
      if f'train/{name}' in means:
        metric = self._known.get(name, metrics.LOSS)
        yield f'{metric.title} {means[f"train/{name}"]:{".1%" if metric.scale == "fraction" else ".3f"}}'

  def first_step(self) -> None:
    """Say how long the first step took, which compiles; later calls do nothing."""
    if self._first is None:
      self._first = self._printed = time.monotonic()
      console.print(f'the first step took {self._first - self._opened:.1f} s; compiling is a part of that')

  def _line(self, step: int, shown: str) -> None:
    """Print how far the training is, where no bar shows it and the last line is some seconds old."""
    now = time.monotonic()
    if console.is_terminal or now - self._printed < LINE_SECONDS:
      return
    self._printed = now
    done = step - self._start
    left = f', {_in_words((now - self._opened) / done * (self._total - step))} left' if done else ''
    console.print(f'epoch {step / self.steps_per_epoch:.2f}, step {step:,} of {self._total:,}: {shown}{left}')

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Write one row of metrics; where there is no terminal, print it as a line."""
    epoch = step / self.steps_per_epoch
    row = {'step': step, 'epoch': round(epoch, 4)} | {k: float(f'{v:.7g}') for k, v in values.items()}
    if self._rows:
      files.append(self._rows, (json.dumps(row) + '\n').encode())
    if self._events:
      self._events.write(step, values)
    self._warn_of_spike(step, values.get('train/loss'))
    if not console.is_terminal or metrics.is_evaluation(values):
      console.print(f'epoch {epoch:.2f} step {step}: {one_line(values, self._known)}')
      self._printed = time.monotonic()

  def _warn_of_spike(self, step: int, loss: float | None) -> None:
    if loss is None:
      return
    if self._spike_factor and len(self._losses) >= MIN_ROWS:
      median = statistics.median(self._losses)
      if loss > self._spike_factor * median:
        console.print(f'warning: the training loss is {loss:.4g} at step {step}, {loss / median:.1f} times its median')
    self._losses.append(loss)


def _in_words(seconds: float) -> str:
  """Return ``'40 s'``, ``'3 min'`` or ``'2 h 5 min'``."""
  minutes = round(seconds / 60)
  if seconds < 90:
    return f'{seconds:.0f} s'
  return f'{minutes} min' if minutes < 90 else f'{minutes // 60} h {minutes % 60} min'


def cut_rows(path: pathlib.Path, last_step: int) -> list[dict[str, float]]:
  """Drop the rows of ``path`` behind ``last_step``, say which are damaged, and return the rest."""
  with files.file_errors(path):
    kept, damage = rows.cut(path, last_step)
  if damage:
    console.print(f'warning: {damage}', markup=False)
  return kept
