"""`jaxres errors`."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from jaxres import files
from jaxres.analysis import label_errors
from jaxres.errors import check_range, printable
from jaxres.files import file_errors
from jaxres.paths import output_path
from jaxres.report import error_report
from jaxres.tools.run_arguments import add_runs, check_keeps_data, read_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres errors`."""
  add_runs(parser, several=False)
  parser.add_argument('--top', type=int, default=48, metavar='N', help='examples and pairs of each kind (48)')
  parser.add_argument('--out', metavar='FILE', help='the page to write; errors.html in the run')
  parser.add_argument('--json', metavar='FILE', help='write the findings as JSON too')
  parser.add_argument(
    '--out-csv', metavar='FILE', help='list every file and its label, the doubtful first: correct it, train on it'
  )


def run(args: argparse.Namespace) -> None:
  """Write the page, the JSON and the list, and print the findings."""
  check_range('--top', args.top, low=1)
  paths = {'--out': args.out, '--json': args.json, '--out-csv': args.out_csv}
  out, as_json, as_csv = (output_path(given, flag) if given else None for flag, given in paths.items())
  (trained,) = read_runs(args, several=False)
  check_keeps_data([trained], paths)
  if as_csv:
    label_errors.check_files(trained)
  outputs = label_errors.predict_splits(trained, args.batch_size)
  if as_csv:
    files.write_atomic(as_csv, _format_csv(label_errors.list_labels(trained, outputs)))
  findings = label_errors.find_label_errors(trained, outputs, args.top)
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
    if labels['weak']:
      problem = f'the network is too weak to judge labels, its top-1 is {labels["top1"]:.1%}'
      advice = 'most candidates are its mistakes; train it better first'
      print(printable(f'warning: {split}: {problem}: {advice}'), file=sys.stderr)
  hardest = ', '.join(f'{row["class"]} {row["recall"]:.2%}' for row in findings['classes'][:3])
  print(printable(f'hardest classes, by recall on the test split: {hardest}'))
  for row in findings['pairs'][:3]:
    print(printable(f'{row["class"]} taken for {row["predicted"]}: {row["examples"]:,}'))
  print(f'{len(findings["duplicates"])} pairs across splits that look most alike, and all thumbnails: {printable(out)}')
  if as_csv:
    print(printable(f'every file and label, the candidates first; correct it and train on it: jaxres train {as_csv}'))


def _format_csv(rows: Sequence[dict[str, Any]]) -> bytes:
  """Return a CSV file of rows, of UTF-8 but for file names that are not."""
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, label_errors.LIST_COLUMNS, lineterminator='\n')
  writer.writeheader()
  writer.writerows(row | {'margin': f'{row["margin"]:.3f}'} for row in rows)
  return text.getvalue().encode('utf-8', 'surrogateescape')
