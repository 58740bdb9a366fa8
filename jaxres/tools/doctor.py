"""`jaxres doctor`."""

import argparse
import collections

from rich.table import Column, Table
from rich.text import Text

from jaxres.doctor import data as data_checks
from jaxres.doctor import machine as machine_checks
from jaxres.doctor import run as run_checks
from jaxres.doctor.check import collect_checks
from jaxres.log.console import console
from jaxres.paths import user_path
from jaxres.runtime.compiler import enable_compilation_cache

COLORS = {'ok': 'green', 'warning': 'yellow', 'problem': 'red'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the tool's arguments."""
  parser.add_argument('--config', help='look also at this config and at its data; --config.x.y=z overrides a field')
  parser.add_argument('--workdir', help='look also at this run: every checkpoint is read and verified')
  parser.add_argument('--replay', metavar='FILE', help='run the step of a bad_step_N.npz again')


def run(args: argparse.Namespace) -> int:
  """Print a table of checks; return 1 where there is a problem, else 0."""
  enable_compilation_cache()
  checks = list(machine_checks.check_machine())
  if args.config:
    checks += collect_checks('config', lambda: data_checks.check_config(args.config, args.overrides))
  if args.workdir:
    checks += collect_checks('run', lambda: run_checks.check_workdir(user_path(args.workdir, '--workdir')))
  if args.replay:
    checks += collect_checks('replay', lambda: run_checks.replay_bad_step(user_path(args.replay, '--replay')))
  table = Table('what', 'verdict', Column('found', overflow='fold'))  # full paths
  for subject, verdict, finding in checks:
    table.add_row(subject, Text(verdict, COLORS[verdict]), finding)
  console.print(table)
  counts = collections.Counter(str(check.verdict) for check in checks)
  plural = lambda verdict: verdict if verdict == 'ok' or counts[verdict] == 1 else f'{verdict}s'
  console.print(', '.join(f'{counts[verdict]} {plural(verdict)}' for verdict in COLORS))
  return int(counts['problem'] > 0)
