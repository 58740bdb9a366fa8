"""What a run prints: where it runs, its metrics, what it ends with."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

import jaxres
from jaxres import files, metrics, trees
from jaxres.errors import printable
from jaxres.log.curves import draw_curves
from jaxres.runtime import distributed
from jaxres.runtime.compiler import onednn_dtypes


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


def one_line(values: Mapping[str, float], known: Mapping[str, metrics.Metric]) -> str:
  """Return metrics as ``train/loss 0.1234, test/top1 98.76%, 1,234 images/s``; ``known`` are those of the task."""
  return ', '.join(f'{name} {format_value(name, value, known)}' for name, value in values.items())


def format_value(name: str, value: float, known: Mapping[str, metrics.Metric]) -> str:
  """Return ``value`` as a person reads it: fractions as percentages, rates and steps with separators.

  Args:
    name: of the metric, such as ``'val/top1'``.
    value: of it.
    known: the metrics of the task, by their names without the split.
  """
  metric = metrics.find_metric(name, known)
  if metric and metric.scale == 'fraction':
    return f'{value:.2%}'
  if name.endswith(('_per_s', 'step')):
    return f'{value:,.0f}'
  return f'{value:.4g}'


def print_start(
  params: Mapping[str, Any], workdir: pathlib.Path, start: int, total: int, steps_per_epoch: float, dtype: str
) -> None:
  """Print what runs where, and how many parameters each part has; write all of them to ``parameters.txt``."""
  overview = optional('clu.parameter_overview', 'parameters.txt')
  if overview:
    files.write_atomic(workdir / 'parameters.txt', overview.get_parameter_overview(params) + '\n')
  table = Table('part', 'arrays', 'parameters')
  for part, tree in sorted(params.items(), key=lambda item: {'stem': 0, 'head': 2}.get(item[0], 1)):
    table.add_row(part, f'{len(jax.tree.leaves(tree))}', f'{trees.count(tree):,}')
  table.add_section()
  table.add_row('total', f'{len(jax.tree.leaves(params))}', f'{trees.count(params):,}')
  console.print(table)
  processes = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
  device = f'{jax.device_count()} x {jax.devices()[0].device_kind}{processes}'
  by = ', convolutions by oneDNN' if dtype in onednn_dtypes() else ''
  console.print(f'jaxres {jaxres.__version__}, jax {jax.__version__} on {device}, in {dtype}{by}')
  verb = 'continuing' if start else 'training'
  console.print(f'{verb} {workdir}: step {start:,} of {total:,}, {steps_per_epoch:,.4g} steps an epoch')


def print_end(
  values: Mapping[str, float], workdir: pathlib.Path, known: Mapping[str, metrics.Metric], monitor: str
) -> None:
  """Draw the curves, and print the metrics a run ended with and where everything is; so does the first process.

  Args:
    values: the metrics.
    workdir: of the run.
    known: the metrics of the task, by their names without the split.
    monitor: the one that is drawn beside the loss.
  """
  if not distributed.is_main_process():
    return
  table = Table('metric', 'value')
  for name, value in values.items():
    table.add_row(name, format_value(name, value, known))
  console.print(table)
  if optional('matplotlib', 'curves.png'):
    console.print(f'curves: {draw_curves(workdir, known, monitor)}')
  console.print(f'checkpoints, metrics.jsonl and event files: {workdir}')


def optional(module: str, what: str) -> Any:
  """Return ``module``; where it is not installed, None, after a line that says ``what`` is left out."""
  try:
    return importlib.import_module(module)
  except ImportError:
    console.print(f'{module.partition(".")[0]} is not installed: no {what}')
    return None
