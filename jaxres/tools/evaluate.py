"""`jaxres evaluate`."""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rich.table import Column, Table

from jaxres import files, predict, workdir
from jaxres.analysis import compare, other_data, runs, scores
from jaxres.errors import InputError, check_range
from jaxres.files import file_errors
from jaxres.log.console import console
from jaxres.paths import output_path, user_path
from jaxres.runtime.compiler import enable_compilation_cache
from jaxres.tools.arguments import add_preprocessing, read_preprocessing
from jaxres.tools.run_arguments import add_runs, check_keeps_data, read_runs
from jaxres.weights import sources

MAX_CONFUSED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres evaluate`."""
  add_runs(parser)
  parser.add_argument(
    '--data', metavar='DATA', help='score on a folder, CSV, .npz or data set by name; weights need it'
  )
  parser.add_argument(
    '--split', choices=other_data.SPLITS, help='of the examples (test; of other data test, val or all, what there is)'
  )
  add_preprocessing(parser)
  parser.add_argument('--out', metavar='FILE', help='write everything as JSON: classes, confusion, reliability, ...')


def run(args: argparse.Namespace) -> None:
  """Print the tables, and write the JSON."""
  out = output_path(args.out, '--out') if args.out else None
  compared = compare_on_data(args) if args.data else compare_runs(args)
  if out:
    with file_errors(out):
      files.write_atomic(out, json.dumps(compared, indent=2, allow_nan=False) + '\n')
  print_tables(compared)


def compare_runs(args: argparse.Namespace) -> dict[str, Any]:
  """Return the scores of runs on their data.

  Raises:
    InputError: one is weights alone, or an argument is for those.
  """
  for source in args.runs:
    is_there = user_path(sources.parse(source)[1]).exists() or source.startswith('torchvision:')
    if is_there and not sources.is_run(source):
      problem = 'it is weights, which have no data'
      raise InputError(source, problem, fix='give some: --data DIR, FILE or NAME, such as --data cifar10')
  for name, value in read_preprocessing(args).items():
    if value is not None:
      raise InputError(f'--{name}', 'a run on its data has that in its config', fix='leave it out, or give --data')
  if args.split == other_data.ALL:
    raise InputError('--split', expected=' or '.join(runs.SPLITS), found=repr(args.split), fix='all is for --data')
  run_list = read_runs(args)
  check_keeps_data(run_list, {'--out': args.out})
  compared, _ = compare.compare(run_list, args.split or 'test', args.batch_size)
  return compared


def compare_on_data(args: argparse.Namespace) -> dict[str, Any]:
  """Return the scores of runs or weights on the data that ``--data`` names. Raises InputError."""
  check_range('--batch_size', args.batch_size, low=1)
  if args.data_path:
    raise InputError('--data_path', "it says where a run's data is now", fix='give --data alone')
  directories = [f'{path}' for source in args.runs for path in sources.list_runs(source) or [source]]
  if len({*directories}) < len(directories):
    raise InputError('RUN', f'a network is named twice: {" ".join(directories)}')
  fallback = other_data.fallback_preset(args.data)
  options = read_preprocessing(args)
  enable_compilation_cache()
  networks: dict[str, predict.Predictor] = {}
  for source in directories:
    network = predict.load(source, args.step if sources.is_run(source) else 'best', **options, fallback=fallback)
    name = pathlib.PurePath(source).name
    networks[source if name in networks else name] = network
  labels = next(iter(networks.values())).task.labels
  examples = other_data.read(args.data, args.split, args.data_dir, labels)
  compared = other_data.compare(networks, examples, args.batch_size or predict.BATCH_SIZE)
  configs = [workdir.read_config(user_path(source)) if sources.is_run(source) else None for source in directories]
  return compare.with_series(compared, configs)


def print_tables(compared: Mapping[str, Any]) -> None:
  """Print the scores, those of each class where there is one run, and how runs differ."""
  columns = compare.columns(compared)
  count = next(iter(columns.values()))['examples']
  of_data = f' of {compared["data"]}' if 'data' in compared else ''
  table = Table(
    '',
    *(Column(name, overflow='fold') for name in compare.headers(compared)),
    title=f'{count:,} {compared["split"]} examples{of_data}, 95 % bootstrap intervals',
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
