"""What a run leaves behind and what its user sees: metrics.jsonl, event files, the curves, a progress bar, tables."""

import collections
import importlib
import io
import json
import pathlib
import socket
import statistics
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import jaxres
from jaxres import distributed, files, metrics, rows, trees
from jaxres.errors import InputError, printable

REFRESH_SECONDS = 0.25
MEDIAN_ROWS, LEAST_ROWS = 21, 5  # of the log, that a loss is compared with


class PlainConsole(Console):
  """rich's console, to which a string is text: no markup, emoji or control characters; a style is given as ``Text``.

  Names of classes, runs and files come to it in strings of all kinds, cells and titles of tables too.
  """

  def __init__(self, **options: Any):
    super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

  def render_str(self, text: str, **options: Any) -> Text:
    """Return what shows ``text``; rich calls this for every string that it is given."""
    return super().render_str(printable(text), **options)


console = PlainConsole()


class RunLog:
  """The log of one run: a context that holds the progress bar.

  Of several processes only the first has files.
  """

  def __init__(self, workdir: pathlib.Path, start: int, total: int, steps_per_epoch: float, spike_factor: float = 0.0):
    """Open the log of a run that is at step ``start`` of ``total``; later rows, of a run that was killed, go.

    A row whose training loss is more than ``spike_factor`` times the median of those before it is warned of; 0 is not.
    """
    self.steps_per_epoch = steps_per_epoch
    leads = distributed.leads()
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

  def __enter__(self) -> Self:
    self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.stop()

  def show(self, step: int, means: Mapping[str, float]) -> None:
    """Move the bar to ``step``, with the training metrics ``means`` beside it; empty ones leave those of before."""
    self._bar.update(self._task, completed=step, description=f'epoch {step / self.steps_per_epoch:.1f}')
    if means:
      speed = f'{means["train/images_per_s"]:,.0f} images/s  ' if 'train/images_per_s' in means else ''
      shown = f'{speed}loss {means["train/loss"]:.3f}  top-1 {means["train/top1"]:.1%}'
      self._bar.update(self._task, shown=shown)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Write one row of metrics; where there is no terminal, print it as a line."""
    epoch = step / self.steps_per_epoch
    row = {'step': step, 'epoch': round(epoch, 4)} | {k: float(f'{v:.7g}') for k, v in values.items()}
    if self._rows:
      files.append(self._rows, (json.dumps(row) + '\n').encode())
    if self._events:
      self._events.write(step, values)
    self._warn_of_spike(step, values.get('train/loss'))
    if not console.is_terminal or is_evaluation(values):
      console.print(f'epoch {epoch:.2f} step {step}: {one_line(values)}')

  def _warn_of_spike(self, step: int, loss: float | None) -> None:
    if loss is None:
      return
    if self._spike_factor and len(self._losses) >= LEAST_ROWS:
      median = statistics.median(self._losses)
      if loss > self._spike_factor * median:
        console.print(f'warning: the training loss is {loss:.4g} at step {step}, {loss / median:.1f} times its median')
    self._losses.append(loss)


class EventFile:
  """A file of TensorBoard's, made at the first row and written in the thread of the caller, who hears of a full disk.

  tensorboardX has a thread for it, which then ends with a traceback, and whoever writes more waits for it for ever.
  """

  def __init__(self, workdir: pathlib.Path, start: int):
    """Name a file in ``workdir``; TensorBoard hides what older ones there have behind step ``start``."""
    from tensorboardX import record_writer, summary
    from tensorboardX.proto import event_pb2

    self._event, self._scalar, self._crc = event_pb2.Event, summary.scalar, record_writer.masked_crc32c
    self._path = workdir / f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}'
    self._first = [self._event(wall_time=time.time(), file_version='brain.Event:2')]
    if start:
      began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._first.append(self._event(step=start + 1, session_log=began))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Write scalars by their names."""
    make = lambda name, value: self._event(step=step, wall_time=time.time(), summary=self._scalar(name, value))
    events = [*self._first, *(make(name, value) for name, value in values.items())]
    files.append(self._path, b''.join(self._record(event.SerializeToString()) for event in events))
    self._first = []

  def _record(self, data: bytes) -> bytes:
    """Return a TFRecord of ``data``."""
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', self._crc(length)) + data + struct.pack('<I', self._crc(data))


class NotFiniteError(InputError):
  """A step of the training was not taken, as it was not finite."""

  rollbacks = 0  # how often the learning rate was halved before


def is_evaluation(values: Mapping[str, float]) -> bool:
  """Return whether metrics are of an evaluation, not only of the training."""
  return any(name.startswith(('val/', 'test/')) for name in values)


class Meter:
  """Running sums of the training metrics, fetched from the device a few times a second, never once a step.

  Fetching waits for the device, so the newest step is left in flight until its number is needed.
  """

  def __init__(
    self, run_log: RunLog, rate: Callable[[int], Any], every: int, partial: Mapping[str, float] | None = None
  ):
    """Log to ``run_log`` every ``every`` steps, with the learning rate that ``rate`` gives for a step.

    ``partial`` are the ``totals`` of a run that stopped between two rows.
    """
    self._log, self._rate, self._every = run_log, rate, every
    self._pending: list[metrics.Sums] = []
    self._total = dict(partial or {})
    self._clock: float | None = None
    self._uncounted, self._shown = self._total.get('count', 0.0), 0.0

  def add(self, step: int, sums: metrics.Sums, *, last: bool) -> None:
    """Take the sums of the batch that ended step ``step``.

    Every so many steps a row of their means is written; at the ``last`` the row is left to the caller.

    Raises:
      NotFiniteError: a step was not taken, see ``step.halt_unless``.
    """
    if self._clock is None:  # the first step compiles: the clock starts behind it
      jax.block_until_ready(sums)
      self._restart_clock(uncounted=self._uncounted + float(sums['count']))
    self._pending.append(sums)
    due = last or step % self._every == 0
    if due or (time.monotonic() - self._shown > REFRESH_SECONDS and jax.process_count() == 1):  # all stop at one step
      self._drain(leave=0 if due else 1)
      self._log.show(step, self._means())
    if due and not last:
      self._log.write(step, self.row(step))
      self._total = {}
      self._restart_clock()

  def row(self, step: int) -> dict[str, float]:
    """Return the means of the steps since the last row."""
    return self._means() | {'train/lr': float(self._rate(step - 1))}

  def totals(self) -> dict[str, float]:
    """Return the sums of the steps since the last row. Raises as ``add`` does."""
    self._drain(leave=0)
    return dict(self._total)

  def _restart_clock(self, uncounted: float = 0.0) -> None:
    self._clock, self._uncounted = time.monotonic(), uncounted

  def _drain(self, leave: int) -> None:
    ready = len(self._pending) - leave
    fetched, self._pending = jax.device_get(self._pending[:ready]), self._pending[ready:]
    for part in fetched:
      if part.pop('bad', 0):
        raise NotFiniteError('the training is no longer finite; lower optim.lr or lengthen optim.warmup_epochs')
      for name, value in part.items():
        self._total[name] = self._total.get(name, 0.0) + float(value)
    self._shown = time.monotonic()

  def _means(self) -> dict[str, float]:
    if not self._total:
      return {}
    means = metrics.compute(self._total, 'train')
    images = self._total['count'] - self._uncounted
    if images and self._clock is not None:
      means['train/images_per_s'] = images / (time.monotonic() - self._clock)
    return means


def cut_rows(path: pathlib.Path, last_step: int) -> list[dict[str, float]]:
  """Drop the rows of ``path`` behind ``last_step``, say which are damaged, and return the rest."""
  with files.file_errors(path):
    kept, damage = rows.cut(path, last_step)
  if damage:
    console.print(f'warning: {damage}', markup=False)
  return kept


def one_line(values: Mapping[str, float]) -> str:
  """Return metrics as ``train/loss 0.1234, test/top1 98.76%, 1,234 images/s``."""
  return ', '.join(f'{name} {format_value(name, value)}' for name, value in values.items())


def format_value(name: str, value: float) -> str:
  """Return ``value`` as a person reads it: fractions as percentages, rates and steps with separators."""
  if 'top' in name:
    return f'{value:.2%}'
  if name.endswith(('_per_s', 'step')):
    return f'{value:,.0f}'
  return f'{value:.4g}'


def print_start(
  params: Mapping[str, Any], workdir: pathlib.Path, start: int, total: int, steps_per_epoch: float
) -> None:
  """Print what runs where, and how many parameters each part has; write all of them to ``parameters.txt``."""
  overview = optional('clu.parameter_overview', 'parameters.txt')
  if overview:
    files.write_whole(workdir / 'parameters.txt', overview.get_parameter_overview(params) + '\n')
  table = Table('part', 'arrays', 'parameters')
  for part, tree in sorted(params.items(), key=lambda item: {'stem': 0, 'head': 2}.get(item[0], 1)):
    table.add_row(part, f'{len(jax.tree.leaves(tree))}', f'{trees.count(tree):,}')
  table.add_section()
  table.add_row('total', f'{len(jax.tree.leaves(params))}', f'{trees.count(params):,}')
  console.print(table)
  processes = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
  device = f'{jax.device_count()} x {jax.devices()[0].device_kind}{processes}'
  console.print(f'jaxres {jaxres.__version__}, jax {jax.__version__} on {device}')
  verb = 'continuing' if start else 'training'
  console.print(f'{verb} {workdir}: step {start:,} of {total:,}, {steps_per_epoch:,.4g} steps an epoch')


def print_end(values: Mapping[str, float], workdir: pathlib.Path) -> None:
  """Draw the curves, and print the metrics a run ended with and where everything is; so does the first process."""
  if not distributed.leads():
    return
  table = Table('metric', 'value')
  for name, value in values.items():
    table.add_row(name, format_value(name, value))
  console.print(table)
  if optional('matplotlib', 'curves.png'):
    console.print(f'curves: {draw_curves(workdir)}')
  console.print(f'checkpoints, metrics.jsonl and event files: {workdir}')


def optional(module: str, what: str) -> Any:
  """Return ``module``; where it is not installed, None, after a line that says ``what`` is left out."""
  try:
    return importlib.import_module(module)
  except ImportError:
    console.print(f'{module.partition(".")[0]} is not installed: no {what}')
    return None


def draw_curves(workdir: pathlib.Path) -> pathlib.Path:
  """Draw loss, top-1 and learning rate over the epochs of ``metrics.jsonl``; return the picture's path."""
  import matplotlib.figure

  known, _ = rows.read(workdir / 'metrics.jsonl')
  figure = matplotlib.figure.Figure(figsize=(12, 3.6), layout='constrained')
  for axes, quantity in zip(figure.subplots(1, 3), ('loss', 'top1', 'lr'), strict=True):
    names = dict.fromkeys(name for row in known for name in row if name.endswith(f'/{quantity}'))
    for name in names:  # of the splits, and of them as ema/... and tta/...
      points = [(row['epoch'], row[name]) for row in known if name in row]
      label = name.removesuffix(f'/{quantity}')
      axes.plot(*zip(*points, strict=True), label=label, marker='.' if len(points) < 60 else None)
    axes.set(title=quantity, xlabel='epoch')
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend()
  path, picture = workdir / 'curves.png', io.BytesIO()
  figure.savefig(picture, dpi=120)
  files.write_whole(path, picture.getvalue())
  return path
