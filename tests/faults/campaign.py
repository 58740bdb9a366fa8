"""Break real runs of main.py, many times, and see that nothing is lost: one JSON line a trial.

python tests/faults/campaign.py

does as many trials of each kind as its table says; ``--kills 3 --nans 2`` only that many of these. Stopped and started
again it goes on where it was. ``python tests/faults/table.py`` writes docs/reliability.md from the results. It mounts a
small disk, which only root can, and asks for more memory than there is, which the system must refuse
(``vm.overcommit_memory`` of 0 or 2).
"""

import argparse
import datetime
import json
import pathlib
import random
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.faults import breaking, inputs, sharing
from tests.faults.runs import Row
from tests.faults.table import RESULTS, rows


def main() -> int:
  """Do what is left of the trials; return the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for kind, (_, full) in TRIALS.items():
    parser.add_argument(f'--{kind}', type=int, help=f'trials in all, with those that were done before ({full})')
  parser.add_argument('--out', type=pathlib.Path, default=RESULTS)
  parser.add_argument('--scratch', type=pathlib.Path, default=pathlib.Path('/tmp/jaxres-faults'))
  args = parser.parse_args()
  args.scratch.mkdir(parents=True, exist_ok=True)
  asked = {kind: getattr(args, kind) for kind in TRIALS}
  everything = all(count is None for count in asked.values())
  failures = 0
  for kind, (trial, full) in TRIALS.items():
    done = sum(row['kind'] == kind for row in rows(args.out))
    for number in range(done, full if everything else asked[kind] or 0):
      start = time.monotonic()
      actual = trial(number, args.scratch, random.Random(f'{kind} {number}'))
      date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      row = {'kind': kind, 'trial': number} | actual | {'seconds': round(time.monotonic() - start, 1), 'date': date}
      failures += not row['ok']
      with args.out.open('a') as file:
        file.write(json.dumps(row) + '\n')
      print(json.dumps(row), flush=True)
  return int(failures > 0)


TRIALS: dict[str, tuple[Callable[[int, pathlib.Path, random.Random], Row], int]] = {
  'kills': (breaking.kill, 200),
  'signals': (breaking.send_signals, 50),
  'pairs': (breaking.signal_pair, 30),
  'exits': (breaking.leave_files, 60),
  'full_disks': (breaking.full_disk, 20),
  'corruptions': (breaking.corrupt, 300),
  'nans': (breaking.nan, 30),
  'odd_paths': (sharing.odd_path, 300),
  'two_trainings': (sharing.two_trainings, 20),
  'exchanged': (sharing.exchange, 12),
  'late_full_disks': (sharing.late_full_disk, 10),
  'closed_outputs': (sharing.close_output, 12),
  'live_readers': (sharing.live_readers, 10),
  'devices': (breaking.other_devices, 6),
  'configs': (inputs.bad_config, 50),
  'images': (inputs.bad_image, 100),
  'missing': (inputs.missing, 8),
  'memory': (inputs.memory, 3),
  'weights': (inputs.bad_weights, 20),
  'payloads': (inputs.payload, 18),
}


if __name__ == '__main__':
  sys.exit(main())
