"""`jaxres runs`."""

import argparse

from rich.table import Column, Table

from jaxres.analysis import run_table
from jaxres.errors import print_status
from jaxres.log.console import console
from jaxres.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres runs`."""
  parser.add_argument('dir', metavar='DIR', nargs='?', default='runs', help='a directory of runs (runs)')


def run(args: argparse.Namespace) -> int:
  """Print the table; return 1 where a run cannot be read."""
  rows, problems = run_table.read(user_path(args.dir, 'DIR'))
  fold = lambda name: Column(name, overflow='fold')
  table = Table(fold('run'), fold('what differs'), 'best validation', 'test', fold('state'))
  share = lambda value: '-' if value is None else f'{value:.2%}'
  for row in rows:
    table.add_row(str(row.path), run_table.describe(row.fields), share(row.val), share(row.test), row.state)
  console.print(table)
  console.print('top-1; test is that of the best validation, or of the last evaluation where there is none')
  for problem in problems:
    print_status(f'left out: {problem}')
  return int(bool(problems))
