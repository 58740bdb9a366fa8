"""Write the table of docs/reliability.md from tests/faults/results.jsonl.

python tests/faults/table.py --check

``--check`` writes nothing and exits with 1 where the page is not what the results say.
"""

import argparse
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

MIN = 10  # trials that say something of a rate
ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'tests/faults/results.jsonl'
PAGE = ROOT / 'docs/reliability.md'
MARKED = re.compile(r'(<!-- faults -->\n).*?(<!-- /faults -->)', re.DOTALL)
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
  """Write the page, or check it; return the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--check', action='store_true')
  args = parser.parse_args(argv)
  text = PAGE.read_text()
  filled, count = MARKED.subn(lambda match: f'{match[1]}\n{table(rows(RESULTS))}\n\n{match[2]}', text)
  if count != 1:
    raise SystemExit(f'{PAGE}: expected one <!-- faults --> ... <!-- /faults -->, found {count}')
  if filled != text and args.check:
    print(f'{PAGE}: not what {RESULTS.name} says; run python tests/faults/table.py')
    return 1
  if not args.check:
    PAGE.write_text(filled)
  return 0


def rows(path: pathlib.Path) -> list[Row]:
  """Return the trials of a file of results; none where it is missing."""
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(every: Sequence[Row]) -> str:
  """Return the table in Markdown."""
  lines = [
    '| fault | what must be | trials | failures | 95 % bound of the rate | seen |',
    '| --- | --- | --- | --- | --- | --- |',
  ]
  for kind, (fault, must, seen) in KINDS.items():
    actual = [row for row in every if row['kind'] == kind]
    if actual:
      failures = sum(not row['ok'] for row in actual)
      bound = f'{3 / len(actual):.1%}'.replace('%', ' %') if not failures and len(actual) >= MIN else ''
      lines.append(f'| {fault} | {must} | {len(actual)} | {failures} | {bound} | {seen(actual)} |')
  return '\n'.join(lines)


def describe_kills(actual: Sequence[Row]) -> str:
  ends = [row['ends_alike'] for row in actual if 'ends_alike' in row]
  return f'{sum(row["status"] == -9 for row in actual)} killed; {sum(ends)} of {len(ends)} runs ended bit-identical'


def describe_stops(actual: Sequence[Row]) -> str:
  asked = [row for row in actual if row.get('said', '').endswith('continues the run') and 'is saved' in row['said']]
  if not asked:
    return ''
  grace = sorted(row['grace_s'] for row in asked)
  p95 = grace[min(len(grace) - 1, round(0.95 * (len(grace) - 1)))]
  at_once = sum(row.get('said', '').startswith('stopped at once') for row in actual)
  median = statistics.median(grace)
  return (
    f'{len(asked)} saved, reported; seconds to the exit: median {median:.1f}, p95 {p95:.1f}; {at_once} ended at once'
  )


def fell_back(actual: Sequence[Row]) -> str:
  count = sum(row['fell_back'] for row in actual)
  return f'{count} fell back and named the part; {len(actual) - count} hit what no array needs'


def describe_full_disks(actual: Sequence[Row]) -> str:
  refused = sum(row['status'] == 2 for row in actual)
  alike = sum(row['ends_alike'] for row in actual)
  return (
    f'{refused} ended with one line, {len(actual) - refused} had room enough; {alike} ended bit-identical with room'
  )


def describe_pairs(actual: Sequence[Row]) -> str:
  ends = [row['ends_alike'] for row in actual if 'ends_alike' in row]
  grace = statistics.median(row['grace_s'] for row in actual if 'ends_alike' not in row)
  return f'seconds to the exit: median {grace:.1f}; {sum(ends)} of {len(ends)} runs ended bit-identical'


def describe_leftovers(actual: Sequence[Row]) -> str:
  counts = [f'{sum(row["way"] == way for row in actual)} by {words}' for way, words in WAYS.items()]
  away = [row for row in actual if row['status']]
  return f'{", ".join(counts)}; {sum(row["newest"] == row["saved"] for row in away)} of {len(away)} saves committed'


def describe_restores(actual: Sequence[Row]) -> str:
  counts = sorted({row['devices'] for row in actual})
  return f'8 to {", ".join(map(str, counts))} to 8 devices; optimizer replicated and sharded'


def second(actual: Sequence[Row]) -> str:
  return (
    f'{sum(row["refused"] for row in actual)} told off, {sum(row["ends_alike"] for row in actual)} ended bit-identical'
  )


def describe_looks(actual: Sequence[Row]) -> str:
  return f'{sum(row["looks"] for row in actual):,} looks, {sum(len(row["wrong"]) for row in actual)} wrong'


def slowest(actual: Sequence[Row]) -> str:
  return f'slowest answer {max(row["run_s"] for row in actual):.1f} s'


def points(actual: Sequence[Row]) -> str:
  return ', '.join(sorted({row['point'] for row in actual}))


def describe_executions(actual: Sequence[Row]) -> str:
  return f'{sum(row["ran"] for row in actual)} executed'


WAYS = {'error': 'an exception', 'exit': '`sys.exit`', 'interrupt': 'KeyboardInterrupt'}
KINDS: dict[str, tuple[str, str, Callable[[Sequence[Row]], str]]] = {
  'kills': ('`kill -9` at a random moment', 'what was committed restores; the end is bit-identical', describe_kills),
  'signals': ('SIGTERM, SIGINT, some twice', 'saved, told after the commit, exit 143 or 130', describe_stops),
  'pairs': ('SIGTERM to one of two processes', 'both save the same step, and exit with 143', describe_pairs),
  'exits': ('the training is left while it saves', 'the save is committed, the process ends', describe_leftovers),
  'full_disks': ('the disk fills up', 'one line; no partial file; earlier saves restore', describe_full_disks),
  'corruptions': ('a bit flipped, a file cut off, emptied, deleted', 'only what was saved is restored', fell_back),
  'nans': (
    'a NaN or an overflow in the pixels, gradient, loss',
    'stops at that step; nothing of it saved',
    lambda _: '',
  ),
  'odd_paths': ('a path of `[ ] % # ? | *` and other letters', 'saved and read there, or refused before', lambda _: ''),
  'two_trainings': (
    'a second training in a workdir',
    'one line that names the first, which ends bit-identical',
    second,
  ),
  'exchanged': (
    'checkpoints of another run, `config.json` gone',
    'one line with the field; nothing touched',
    lambda _: '',
  ),
  'late_full_disks': (
    'a disk that is full behind the last save, or too small',
    'one line; nothing half written',
    lambda _: '',
  ),
  'closed_outputs': (
    'an output that is closed, full or ASCII',
    'the run ends bit-identical, with status 0',
    lambda _: '',
  ),
  'live_readers': ('tools read a run that trains', 'no look is wrong', describe_looks),
  'devices': ('restored on other devices, and back', 'every leaf the same, to the bit', describe_restores),
  'configs': ('a misspelled field, a wrong type', 'one line with the field and the nearest word', slowest),
  'images': (
    'a truncated, empty or foreign image file',
    'one line with its name before anything is compiled',
    lambda _: '',
  ),
  'missing': ('no data, no file, no network, an unknown name', 'one line in less than 10 s', slowest),
  'memory': ('more memory asked for than there is', 'one line with what would fit', points),
  'weights': (
    'weights that do not fit, or are cut off',
    'one line that names the tensor, or says that no network is like it',
    lambda _: '',
  ),
  'payloads': ('weights that would run a command', 'not run; one line with what they tried', describe_executions),
}


if __name__ == '__main__':
  sys.exit(main())
