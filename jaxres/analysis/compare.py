"""`jaxres evaluate`: scores of runs on the examples of a split, side by side and as an ensemble."""

from collections.abc import Mapping
from typing import Any

from jaxres import metrics
from jaxres.analysis import runs, scores, task_scores

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
    The scores, as of ``scores.compare``, with ``split`` and the ``origin`` of each run; and the outputs by run.

  Raises:
    InputError: the runs have other classes or examples, or a run has no such split or cannot be evaluated.
  """
  runs.check_runs(run_list)
  names = [run.name for run in run_list]
  tests = dict(zip(names, (runs.predict_split(run, split, batch_size) for run in run_list), strict=True))
  runs.check_same_examples(run_list, [test.labels for test in tests.values()], split)
  if not run_list[0].task.labels.are_classes:
    return {'split': split} | with_origins(task_scores.compare(tests, run_list[0].task), run_list), tests
  fits = lambda run: run.dataset.val is not None and split != 'val'
  vals = {run.name: runs.predict_split(run, 'val', batch_size) if fits(run) else None for run in run_list}
  compared = scores.compare(tests, vals, run_list[0].class_names)
  return {'split': split} | with_origins(compared, run_list), tests


def with_origins(compared: dict[str, Any], networks: list[runs.Run]) -> dict[str, Any]:
  """Return the scores of runs, each with which checkpoint it is of."""
  return compared | {'runs': {run.name: {'origin': run.origin} | compared['runs'][run.name] for run in networks}}


def columns(compared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Return the scores of every run and of the ensemble, by what a table calls them."""
  together = compared['ensemble']
  return compared['runs'] | ({'ensemble': together} if together else {})


def rows(compared: Mapping[str, Any]) -> list[list[str]]:
  """Return the rows of the table of scores: a name, and the value for each of ``columns``."""
  if 'metrics' in compared:
    return [_metric_row(compared, name) for name in compared['metrics']]
  table = []
  for label, place in ROWS.items():
    if label == 'top-5' and all(column['top5'] is None for column in columns(compared).values()):
      continue  # of few classes: it is always 100 %
    row = [label]
    for column in columns(compared).values():
      value: Any = column
      for key in place:
        value = None if value is None else value[key]
      bound = ' (at the bound of the search)' if label == 'temperature' and column['temperature_at_bound'] else ''
      row.append(show(label, value) + bound + _interval(label, column['intervals']))
    table.append(row)
  return table


def _metric_row(compared: Mapping[str, Any], name: str) -> list[str]:
  """Return the row of a metric of the task, with its interval."""
  metric = metrics.Metric(**compared['metrics'][name])
  write = lambda value: f'{value:.2%}' if metric.scale == 'fraction' else f'{value:.4g}'
  row = [metric.title]
  for column in columns(compared).values():
    low, high = column['intervals'][name]
    row.append(f'{write(column[name])} ({write(low)} to {write(high)})')
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
  """Return what is undefined, and why, each once."""
  lines = [note for column in columns(compared).values() for note in column['notes']]
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
