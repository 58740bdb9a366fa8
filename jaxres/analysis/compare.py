"""`jaxres evaluate`: scores of runs on the examples of a split, side by side and as an ensemble."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxres import metrics
from jaxres.analysis import runs, scores, task_scores
from jaxres.train import seeds

ROWS = {  # of the table: where each is in a run's scores
  'top-1': ('top1',),
  'top-5': ('top5',),
  'loss': ('loss',),
  'precision, macro': ('macro', 'precision'),
  'recall, macro': ('macro', 'recall'),
  'F1, macro': ('macro', 'f1'),
  'F1, weighted': ('weighted', 'f1'),
  'ROC-AUC, one vs rest': ('roc_auc_ovr',),
  'ROC-AUC, one vs one': ('roc_auc_ovo',),
  'average precision': ('average_precision',),
  'calibration error (ECE)': ('calibration', 'ece'),
  'Brier score': ('calibration', 'brier'),
  'temperature': ('temperature',),
  'ECE at that temperature': ('calibrated', 'ece'),
  'loss at that temperature': ('calibrated', 'loss'),
}
PLAIN = ('loss', 'temperature', 'Brier')  # rows that are no fractions
BY_RUN = (('train', 'seed'), ('data', 'seed'), ('data', 'fold'))  # what differs in the configs of a series of runs
INTERVALS = {'top-1': 'top1', 'top-5': 'top5', 'loss': 'loss', 'F1, macro': 'macro_f1'}


def compare(
  run_list: list[runs.Run], split: str = 'test', batch_size: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Return the scores of runs and their outputs on a split.

  Those of a task that has no classes are its metrics, as of ``task_scores.compare``. The temperature
  is fitted on the validation split, where there is one and it is not what is evaluated.

  Args:
    run_list: of ``runs.read_runs``, with equal classes and examples.
    split: ``'val'`` or ``'test'``.
    batch_size: as of ``runs.predict_split``.

  Returns:
    The scores, as of ``scores.compare``, with ``split``, the ``origin`` of each run and where the runs are a series
    ``series``, as of ``summarize_series``; and the outputs by run.

  Raises:
    InputError: the runs have other classes or examples, or a run has no such split or cannot be evaluated.
  """
  runs.check_runs(run_list)
  names = [run.name for run in run_list]
  tests = dict(zip(names, (runs.predict_split(run, split, batch_size) for run in run_list), strict=True))
  runs.check_same_examples(run_list, [test.labels for test in tests.values()], split)
  if not run_list[0].task.labels.are_classes:
    compared = {'split': split} | with_origins(task_scores.compare(tests, run_list[0].task), run_list)
    return with_series(compared, [run.config for run in run_list]), tests
  fits = lambda run: run.dataset.val is not None and split != 'val'
  vals = {run.name: runs.predict_split(run, 'val', batch_size) if fits(run) else None for run in run_list}
  compared = scores.compare(tests, vals, run_list[0].class_names)
  compared = {'split': split} | with_origins(compared, run_list)
  return with_series(compared, [run.config for run in run_list]), tests


def with_origins(compared: dict[str, Any], networks: list[runs.Run]) -> dict[str, Any]:
  """Return the scores of runs, each with which checkpoint it is of."""
  return compared | {'runs': {run.name: {'origin': run.origin} | compared['runs'][run.name] for run in networks}}


def with_series(compared: dict[str, Any], configs: Sequence[Mapping[str, Mapping[str, Any]] | None]) -> dict[str, Any]:
  """Return scores with ``series``: what their runs give together; without it where they are no series.

  Args:
    compared: as of ``compare``.
    configs: of the runs, in order; None of what is none. A series is of two runs or more that differ in their seeds and
      folds alone.
  """
  shared = [
    {(section, field): value for section in config for field, value in config[section].items()} | dict.fromkeys(BY_RUN)
    for config in configs
    if config is not None
  ]
  if len(shared) < max(2, len(configs)) or any(fields != shared[0] for fields in shared):
    return compared
  return compared | {'series': summarize_series(compared)}


def summarize_series(compared: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
  """Return what the runs of a series give together, for each row of the table in which all of them have a value.

  Args:
    compared: as of ``compare``.

  Returns:
    By row ``mean``, ``std`` (of the sample, with n - 1), and ``low`` and ``high`` of the 95 % interval of the mean, as
    of ``train.seeds.summarize``; None of fewer than three runs.
  """
  rows = _metric_places(compared) if 'metrics' in compared else {row: (ROWS[row], _scale_of(row)) for row in ROWS}
  summaries = {}
  for name, (place, scale) in rows.items():
    values = [_look_up(run_scores, place) for run_scores in compared['runs'].values()]
    if all(value is not None for value in values):
      summary = seeds.summarize_on_scale(values, scale)._asdict()
      summaries[name] = {field: summary[field] for field in ('mean', 'std', 'low', 'high')}
  return summaries


def _scale_of(row: str) -> str:
  """Return the scale of ``metrics.Metric`` that a row of ``ROWS`` has."""
  return 'positive' if row.startswith(PLAIN) else 'fraction'


def _metric_places(compared: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], str]]:
  """Return where each metric of a task without classes is in a run's scores, and its scale, by its title."""
  known = {name: metrics.Metric(**fields) for name, fields in compared['metrics'].items()}
  return {metric.title: ((name,), metric.scale) for name, metric in known.items()}


def _look_up(run_scores: Mapping[str, Any], place: Sequence[str]) -> Any:
  """Return a value of a run's scores; None where it or what it is in is undefined."""
  value: Any = run_scores
  for key in place:
    value = None if value is None else value[key]
  return value


def headers(compared: Mapping[str, Any]) -> list[str]:
  """Return what the columns of the table of scores are called: those of ``columns``, and of a series the mean."""
  return [*columns(compared), *([f'mean of {len(compared["runs"])}'] if 'series' in compared else [])]


def columns(compared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Return the scores of every run and of the ensemble, by what a table calls them."""
  together = compared['ensemble']
  return compared['runs'] | ({'ensemble': together} if together else {})


def rows(compared: Mapping[str, Any]) -> list[list[str]]:
  """Return the rows of the table of scores: a name, and the value for each of ``headers``."""
  if 'metrics' in compared:
    return [_metric_row(compared, name) for name in compared['metrics']]
  table = []
  series = compared.get('series')
  for label, place in ROWS.items():
    if label == 'top-5' and all(column['top5'] is None for column in columns(compared).values()):
      continue  # of few classes: it is always 100 %
    row = [label]
    for column in columns(compared).values():
      value = _look_up(column, place)
      bound = ' (at the bound of the search)' if label == 'temperature' and column['temperature_at_bound'] else ''
      row.append(show(label, value) + bound + _interval(label, column['intervals']))
    if series is not None:
      row.append(_show_summary(series.get(label), functools.partial(show, label)))
    table.append(row)
  return table


def _show_summary(summary: Mapping[str, float] | None, write: Callable[[float], str]) -> str:
  """Return the mean of a series of runs, its spread and its interval as a table has them; a dash where undefined."""
  if summary is None:
    return '-'
  interval = '' if summary['low'] is None else f' ({write(summary["low"])} to {write(summary["high"])})'
  return f'{write(summary["mean"])} ± {write(summary["std"])}{interval}'


def _metric_row(compared: Mapping[str, Any], name: str) -> list[str]:
  """Return the row of a metric of the task, with its interval."""
  metric = metrics.Metric(**compared['metrics'][name])
  write = lambda value: f'{value:.2%}' if metric.scale == 'fraction' else f'{value:.4g}'
  row = [metric.title]
  for column in columns(compared).values():
    low, high = column['intervals'][name]
    row.append(f'{write(column[name])} ({write(low)} to {write(high)})')
  if 'series' in compared:
    row.append(_show_summary(compared['series'].get(metric.title), write))
  return row


def show(label: str, value: float | None) -> str:
  """Return ``value`` as a table has it; a dash where it is undefined."""
  if value is None:
    return '-'
  return f'{value:.4g}' if label.startswith(PLAIN) else f'{value:.2%}'


def _interval(label: str, intervals: Mapping[str, Any]) -> str:
  if INTERVALS.get(label) not in intervals:
    return ''
  low, high = intervals[INTERVALS[label]]
  return f' ({show(label, low)} to {show(label, high)})'


def notes(compared: Mapping[str, Any]) -> list[str]:
  """Return what is undefined, and why, each once; and of a series what its column is."""
  lines = [note for column in columns(compared).values() for note in column['notes']]
  if 'series' in compared:
    count = len(compared['runs'])
    interval = '95 % interval of the mean (Student)' if count >= seeds.MIN_VALUES else 'no interval of so few'
    lines.append(f'mean of {count}: of the runs, ± their standard deviation; {interval}')
  if 'metrics' in compared:
    return [*dict.fromkeys(lines)]
  if 'data' in compared:
    lines.append('no temperature: it is fitted on a validation split of the data of a run')
  elif compared['split'] == 'val':
    lines.append('no temperature: it is fitted on the validation split, and is not evaluated there')
  elif any(column['temperature'] is None for column in columns(compared).values()):
    lines.append('no temperature without validation examples: they are held out by data.val')
  return [*dict.fromkeys(lines)]


def differences(compared: Mapping[str, Any]) -> list[str]:
  """Return a sentence for each two runs: how they differ, and whether that may be chance."""
  lines = []
  for pair in compared['pairs']:
    (first, second), (low, high) = pair['runs'], pair['interval']
    if 'metric' in pair:
      lines.append(f'{second} less {first}: {pair["difference"]:+.4g} {pair["metric"]} ({low:+.4g} to {high:+.4g})')
      continue
    lines.append(
      f'{second} less {first}: {pair["difference"]:+.2%} top-1 ({low:+.2%} to {high:+.2%}); only {second} is right on '
      f'{pair["only_second"]:,} examples, only {first} on {pair["only_first"]:,}; McNemar p = {pair["p"]:.3g}'
    )
  return lines
