"""`jaxres evaluate`."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from rich.table import Column, Table

from jaxres import files
from jaxres.analysis import compare, runs, scores
from jaxres.files import file_errors
from jaxres.log.console import console
from jaxres.paths import output_path
from jaxres.tools.run_arguments import add_runs, read_runs

MAX_CONFUSED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres evaluate`."""
  add_runs(parser)
  parser.add_argument('--split', default='test', choices=runs.SPLITS, help='of the examples (test)')
  parser.add_argument('--out', metavar='FILE', help='write everything as JSON: classes, confusion, reliability, ...')


def run(args: argparse.Namespace) -> None:
  """Print the tables, and write the JSON."""
  out = output_path(args.out, '--out') if args.out else None
  compared, _ = compare.compare(read_runs(args), args.split, args.batch_size)
  if out:
    with file_errors(out):
      files.write_atomic(out, json.dumps(compared, indent=2, allow_nan=False) + '\n')
  print_tables(compared)


def print_tables(compared: Mapping[str, Any]) -> None:
  """Print the scores, those of each class where there is one run, and how runs differ."""
  columns = compare.columns(compared)
  count = next(iter(columns.values()))['examples']
  table = Table(
    '',
    *(Column(name, overflow='fold') for name in columns),
    title=f'{count:,} {compared["split"]} examples, 95 % bootstrap intervals',
  )
  for row in compare.rows(compared):
    table.add_row(*row)
  for name, each in compared['runs'].items():
    console.print(f'{name}: {each["origin"]}')
  console.print(table)
  if len(compared['runs']) == 1 and 'classes' in next(iter(columns.values())):
    print_classes(next(iter(columns.values())))
  for line in compare.differences(compared):
    console.print(line)
  for note in compare.notes(compared):
    console.print(f'note: {note}')


def print_classes(columns: Mapping[str, Any]) -> None:
  """Print the scores of each class, and the commonest confusions."""
  names = ('precision', 'recall', 'f1', 'roc_auc', 'average_precision')
  table = Table(
    Column('class', overflow='fold'), 'examples', 'precision', 'recall', 'F1', 'ROC-AUC', 'average precision'
  )
  for row in columns['classes']:
    table.add_row(row['name'], f'{row["examples"]:,}', *(compare.show('', row[name]) for name in names))
  console.print(table)
  for label, predicted, count in scores.rank_confusions(columns['confusion'])[:MAX_CONFUSED]:
    classes = columns['classes']
    console.print(f'{classes[label]["name"]} taken for {classes[predicted]["name"]}: {count:,}')
