"""airbench94 (Jordan 2024) on this GPU and these images: its script, timed as it times itself.

python benchmarks/gpu/airbench.py --airbench DIR --data cifar10.npz --runs 10

DIR is a checkout of https://github.com/KellerJordan/cifar10-airbench, of which nothing is kept here. A copy of the
script does ``--runs`` trainings, after one to compile where it does that itself; its images are those of the ``.npz``.
It needs a GPU, torch and torchvision. Prints one JSON line a run, then one of the means; ``seconds`` are those that the
script prints: whitening, training and the evaluation of six views, its other evaluations left out.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks import end_to_end, harness

SCRIPT = 'airbench94_muon.py'  # the one of "2.59 seconds"; legacy/airbench94.py compiles nothing
RUNS = re.compile(r'(for run in range\()\d+(\))')
CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--airbench', required=True, help='the checkout')
  parser.add_argument('--script', default=SCRIPT, help='a file in it')
  parser.add_argument('--data', required=True, help='an .npz file as of data.name=arrays')
  parser.add_argument('--runs', type=int, default=10)
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  args = parser.parse_args()
  context = {'benchmark': 'warm', 'config': f'airbench, {args.script}', 'overrides': [], 'metric': 'tta/test/top1'}
  context |= harness.machine()
  with tempfile.TemporaryDirectory() as folder:
    write_images(args.data, pathlib.Path(folder) / 'cifar10')
    script = pathlib.Path(folder) / 'script.py'
    script.write_text(with_runs((pathlib.Path(args.airbench) / args.script).read_text(), args.runs))
    done = subprocess.run([sys.executable, script.name], cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    raise SystemExit(f'airbench: {args.script} ended with status {done.returncode}')
  rows = [{'side': f'seed {k}'} | row for k, row in enumerate(parse(done.stdout))]
  if len(rows) != args.runs:
    raise SystemExit(f'airbench: expected the lines of {args.runs} runs, found {len(rows)}')
  harness.report([row | context for row in [*rows, end_to_end.mean(rows)]], args.out)


def write_images(npz: str, folder: pathlib.Path) -> None:
  """Write the splits of ``npz`` as the script keeps them: ``train.pt`` and ``test.pt``, which it then downloads not."""
  import torch

  folder.mkdir()
  with np.load(npz) as content:
    for split in ('train', 'test'):
      images, labels = torch.from_numpy(content[f'{split}_x']), torch.from_numpy(content[f'{split}_y'].astype(np.int64))
      torch.save({'images': images, 'labels': labels, 'classes': list(CLASSES)}, folder / f'{split}.pt')


def with_runs(script: str, runs: int) -> str:
  """Return ``script`` with another number of runs."""
  changed, count = RUNS.subn(rf'\g<1>{runs}\g<2>', script)
  if count != 1:
    raise SystemExit(f'airbench: expected one `for run in range(N)` in the script, found {count}')
  return changed


def parse(output: str) -> list[dict[str, Any]]:
  """Return the ``seconds`` and the ``accuracy`` of each run that ``output``, a table of all epochs, ends with.

  Only the first line of a run has its name; that of a run to warm up is no number.
  """
  lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in output.splitlines() if line.startswith('|')]
  head, *lines = lines or [[]]
  name, rows = '', []
  for line in lines:
    row = dict(zip(head, line, strict=True))
    name = row['run'] or name
    if row['epoch'] == 'eval' and name.isdigit():
      seconds = row.get('time_seconds') or row['total_time_seconds']
      rows.append({'seconds': float(seconds), 'accuracy': float(row['tta_val_acc'])})
  return rows


if __name__ == '__main__':
  main()
