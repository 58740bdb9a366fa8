"""Several runs of one config, such as of several seeds: mean, spread and confidence interval of every metric."""

import json
import math
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from jaxres import config as config_lib
from jaxres import files, metrics, tasks
from jaxres.errors import InputError
from jaxres.log.console import console, format_value
from jaxres.paths import user_path
from jaxres.runtime.lock import lock_workdir
from jaxres.train import loop

CONFIDENCE = 0.95
MIN_VALUES = 3  # of an interval: that of two values is 13 standard errors to each side, nearly everything there is


class Summary(NamedTuple):
  """A metric over several runs."""

  mean: float
  std: float  # of the sample: with n - 1
  low: float | None  # of the interval that holds the mean of all seeds in 95 of 100 such trials; None has none
  high: float | None
  values: tuple[float, ...]  # in the order of the seeds


def train_and_evaluate(config: Mapping[str, Any], workdir: str | os.PathLike[str], seeds: int) -> dict[str, Summary]:
  """Train ``config`` with ``seeds`` seeds, one after the other, and print what they give together.

  Run ``k`` adds ``k`` to ``train.seed`` and ``data.seed``: everything that is drawn at random differs. It is a run of
  its own in ``<workdir>/seed<k>``, so that an interrupted series continues as a run does.

  Args:
    config: as of ``train.train_and_evaluate``.
    workdir: gets the runs' directories and ``seeds.json``, the summaries by metric.
    seeds: how many, 2 or more.

  Returns:
    The summary of every metric that all the runs have.

  Raises:
    InputError: as ``train.train_and_evaluate``.
  """
  if type(seeds) is not int or seeds < 2:
    raise InputError('seeds', expected='2 or more', found=f'{seeds!r:.80}')
  loop.check_workdir(workdir)
  configs = {}
  for k in range(seeds):
    options = config_lib.to_dict(config_lib.complete(config))
    options['train']['seed'] += k
    options['data']['seed'] += k
    configs[f'seed{k}'] = options
  return series(configs, workdir, 'seeds')


def series(
  configs: Mapping[str, Mapping[str, Mapping[str, Any]]], workdir: str | os.PathLike[str], what: str
) -> dict[str, Summary]:
  """Train ``configs`` one after the other, each in a directory of its name, and print what they give together.

  Args:
    configs: complete ones, two or more, by name.
    workdir: gets the directories and ``<what>.json``, the summaries by metric.
    what: they are, in the plural.

  Returns:
    The summary of every metric that all the runs have.

  Raises:
    InputError: as ``train.train_and_evaluate``.
  """
  directory = user_path(workdir, '--workdir')
  with lock_workdir(directory):  # and each run locks its own
    return _series(configs, directory, what)


def _series(
  configs: Mapping[str, Mapping[str, Mapping[str, Any]]], workdir: pathlib.Path, what: str
) -> dict[str, Summary]:
  results = [loop.train_and_evaluate(options, workdir / name) for name, options in configs.items()]
  known = tasks.make_from(next(iter(configs.values()))['train']).metrics
  names = [name for name in results[0] if all(name in values for values in results)]
  summaries = {name: summarize([values[name] for values in results], name, known) for name in names}
  content = {name: summary._asdict() for name, summary in summaries.items()}
  if not any(options['train']['dry_run'] for options in configs.values()):
    files.write_atomic(workdir / f'{what}.json', json.dumps(content, indent=2) + '\n')
  print_summaries(summaries, workdir, what, known)
  return summaries


def summarize(values: Sequence[float], name: str, known: Mapping[str, metrics.Metric]) -> Summary:
  """Return the summary of two or more ``values``, with an interval of their mean where it says something.

  It is Student's t, on a scale where the metric has no bounds: the logit of a fraction, the logarithm of what is
  positive, such as a loss, by the delta method. So that of an accuracy stays within 0 to 100 %.

  Args:
    values: of the metric, in the order of the seeds.
    name: of the metric, such as ``'test/top1'``. What is no score, such as the learning rate or the speed, has no
      interval, nor have fewer than three values.
    known: the metrics of the task, by their names without the split.
  """
  metric = metrics.find_metric(name, known)
  return summarize_on_scale(values, metric.scale if metric else None)


def summarize_on_scale(values: Sequence[float], scale: str | None) -> Summary:
  """Return the summary of two or more ``values`` on a ``scale`` of ``metrics.Metric``; on None without an interval."""
  mean, std = statistics.fmean(values), statistics.stdev(values)
  low, high = interval(values, mean, std, scale) if scale else (None, None)
  return Summary(mean, std, low, high, tuple(values))


def interval(values: Sequence[float], mean: float, std: float, scale: str) -> tuple[float, float] | tuple[None, None]:
  """Return the interval of the mean of ``values``, as ``summarize`` says, on a ``scale`` of ``metrics.Metric``."""
  from scipy import special, stats  # slow

  if len(values) < MIN_VALUES:
    return None, None
  if std == 0:
    return mean, mean
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * std / len(values) ** 0.5
  if scale == 'real' or (scale == 'positive' and mean <= 0):
    return mean - half, mean + half
  if scale == 'positive':
    factor = math.exp(min(half / mean, 700.0))
    return mean / factor, mean * factor
  center, width = special.logit(mean), half / (mean * (1 - mean))
  return float(special.expit(center - width)), float(special.expit(center + width))


def print_summaries(
  summaries: Mapping[str, Summary], workdir: pathlib.Path, what: str, known: Mapping[str, metrics.Metric]
) -> None:
  """Print a table of the summaries and where they are."""
  count = len(next(iter(summaries.values())).values)
  table = Table('metric', 'mean', 'std', f'{CONFIDENCE:.0%} interval', title=f'{count} {what}')
  for name, (mean, std, low, high, _) in summaries.items():
    show = lambda value, name=name: format_value(name, value, known)
    table.add_row(name, show(mean), show(std), '-' if low is None else f'{show(low)} to {show(high)}')
  console.print(table)
  if count < MIN_VALUES:
    console.print(f'no intervals: they take {MIN_VALUES} {what} or more')
  console.print(f'runs and {what}.json: {workdir}')
