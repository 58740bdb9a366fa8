"""Several runs of one config, such as of several seeds: mean, spread and confidence interval of every metric."""

import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from jaxres import config as config_lib
from jaxres import files, log, train
from jaxres import workdir as workdir_lib

CONFIDENCE = 0.95


class Summary(NamedTuple):
  """A metric over several runs."""

  mean: float
  std: float  # of the sample: with n - 1
  low: float  # of the interval that holds the mean of all seeds in 95 of 100 such trials
  high: float
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
    configs: whole ones, two or more, by name.
    workdir: gets the directories and ``<what>.json``, the summaries by metric.
    what: they are, in the plural.

  Returns:
    The summary of every metric that all the runs have.

  Raises:
    InputError: as ``train.train_and_evaluate``.
  """
  directory = files.local(workdir, '--workdir').expanduser()
  with workdir_lib.locked(directory):  # and each run locks its own
    return _series(configs, directory, what)


def _series(
  configs: Mapping[str, Mapping[str, Mapping[str, Any]]], workdir: pathlib.Path, what: str
) -> dict[str, Summary]:
  found = [train.train_and_evaluate(options, workdir / name) for name, options in configs.items()]
  names = [name for name in found[0] if all(name in metrics for metrics in found)]
  summaries = {name: summarize([metrics[name] for metrics in found]) for name in names}
  content = {name: summary._asdict() for name, summary in summaries.items()}
  if not any(options['train']['dry_run'] for options in configs.values()):
    files.write_whole(workdir / f'{what}.json', json.dumps(content, indent=2) + '\n')
  print_summaries(summaries, workdir, what)
  return summaries


def summarize(values: Sequence[float]) -> Summary:
  """Return the summary of two or more ``values``, with Student's t interval of their mean."""
  from scipy import stats  # slow

  n, mean, std = len(values), statistics.fmean(values), statistics.stdev(values)
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / n**0.5
  return Summary(mean, std, mean - half, mean + half, tuple(values))


def print_summaries(summaries: Mapping[str, Summary], workdir: pathlib.Path, what: str) -> None:
  """Print a table of the summaries and where they are."""
  count = len(next(iter(summaries.values())).values)
  table = Table('metric', 'mean', 'std', f'{CONFIDENCE:.0%} interval', title=f'{count} {what}')
  for name, (mean, std, low, high, _) in summaries.items():
    show = lambda value, name=name: log.format_value(name, value)
    table.add_row(name, show(mean), show(std), f'{show(low)} to {show(high)}')
  log.console.print(table)
  log.console.print(f'runs and {what}.json: {workdir}')
