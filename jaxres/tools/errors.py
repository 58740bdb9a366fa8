"""`jaxres errors`."""

import argparse
import json

from jaxres import files
from jaxres.analysis import label_errors
from jaxres.errors import check_range, printable
from jaxres.files import file_errors
from jaxres.paths import output_path
from jaxres.report import error_report
from jaxres.tools.run_arguments import add_runs, read_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres errors`."""
  add_runs(parser, several=False)
  parser.add_argument('--top', type=int, default=48, metavar='N', help='examples and pairs of each kind (48)')
  parser.add_argument('--out', metavar='FILE', help='the page to write; errors.html in the run')
  parser.add_argument('--json', metavar='FILE', help='write what was found as JSON too')


def run(args: argparse.Namespace) -> None:
  """Write the page and the JSON, and print what was found."""
  check_range('--top', args.top, low=1)
  out, as_json = (
    output_path(given, flag) if given else None for given, flag in ((args.out, '--out'), (args.json, '--json'))
  )
  (trained,) = read_runs(args, several=False)
  findings = label_errors.find_label_errors(trained, args.top, args.batch_size)
  if as_json:
    with file_errors(as_json):
      files.write_atomic(as_json, json.dumps(findings, indent=2, allow_nan=False) + '\n')
  out = out or trained.path / 'errors.html'
  with file_errors(out):
    files.write_atomic(out, error_report.make_page(trained, findings))
  print(printable(trained.origin))
  for split, labels in findings['labels'].items():
    print(
      printable(f'{split}: {labels["candidates"]:,} of {labels["examples"]:,} labels are candidates for wrong ones')
    )
  hardest = ', '.join(f'{row["class"]} {row["recall"]:.2%}' for row in findings['classes'][:3])
  print(printable(f'hardest classes, by recall on the test split: {hardest}'))
  for row in findings['pairs'][:3]:
    print(printable(f'{row["class"]} taken for {row["predicted"]}: {row["examples"]:,}'))
  print(f'{len(findings["duplicates"])} pairs across splits that look most alike, and all thumbnails: {printable(out)}')
