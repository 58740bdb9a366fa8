"""`jaxres report`."""

import argparse

from jaxres import files
from jaxres.errors import printable
from jaxres.files import file_errors
from jaxres.paths import output_path
from jaxres.report import run_report
from jaxres.tools.run_arguments import add_runs, check_keeps_data, read_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres report`."""
  add_runs(parser)
  parser.add_argument('--out', metavar='FILE', help='the page to write; report.html in the first run')


def run(args: argparse.Namespace) -> None:
  """Write the page, and say where it is."""
  out = output_path(args.out, '--out') if args.out else None
  run_list = read_runs(args)
  check_keeps_data(run_list, {'--out': args.out})
  out = out or run_list[0].path / 'report.html'
  text = run_report.make_report(run_list, args.batch_size)
  with file_errors(out):
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(out, text)
  print(f'{printable(out)}: {len(text.encode()) / 1e6:.2f} MB')
