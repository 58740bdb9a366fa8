"""Whether two trainings from nothing end with the same bits, and how fast they are.

python benchmarks/gpu/determinism.py --config configs/resnet18_cifar.py --mode deterministic --config.train.epochs=2

``--mode default`` trains as the config says, ``deterministic`` with ``train.deterministic``. Each training is a process
with its own workdir and an empty cache of programs: what is chosen by how fast it once was is chosen again.
Prints one JSON line: whether the digests of all that was saved agree, and the median images/s of both.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks import harness

RUNS = 2


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--config', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--mode', choices=('default', 'deterministic'), default='default')
  parser.add_argument('--out', help='a file that the JSON line is added to')
  args, overrides = parser.parse_known_args()
  context = {'benchmark': 'determinism', 'config': args.config, 'overrides': overrides} | harness.machine()
  words = [args.config, *overrides, f'--config.train.deterministic={args.mode == "deterministic"}']
  rows = [train(words) for _ in range(RUNS)]
  harness.report([{'side': args.mode} | compare_runs(rows) | context], args.out)


def train(words: list[str]) -> dict[str, Any]:
  """Return the digest of a training, its images/s and its last test score."""
  with tempfile.TemporaryDirectory() as folder:
    environment = {'PYTHONPATH': harness.python_path(), 'JAX_COMPILATION_CACHE_DIR': f'{folder}/programs'}
    run = f'{folder}/run'
    call([str(harness.ROOT / 'main.py'), '--workdir', run, '--config', *words], environment)
    rows = [json.loads(line) for line in pathlib.Path(run, 'metrics.jsonl').read_text().splitlines()]
    digest = call(['-m', 'jaxres', 'digest', run], environment | {'JAX_PLATFORMS': 'cpu'}).split()[0]
  speed = statistics.median(row['train/images_per_s'] for row in rows if 'train/images_per_s' in row)
  return {'digest': digest, 'images_per_s': speed, 'accuracy': rows[-1]['test/top1']}


def call(words: list[str], environment: Mapping[str, str]) -> str:
  """Return what Python prints when it is called with ``words``; its errors go where ours do."""
  done = subprocess.run(
    [sys.executable, *words],
    cwd=harness.ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    text=True,
    check=False,
  )
  if done.returncode:
    raise SystemExit(f'determinism: {" ".join(words)} ended with status {done.returncode}\n{done.stdout[-2000:]}')
  return done.stdout


def compare_runs(rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Return the row of several trainings."""
  speeds = [row['images_per_s'] for row in rows]
  return {
    'same_digest': len({row['digest'] for row in rows}) == 1,
    'images_per_s': round(statistics.median(speeds), 2),
    'spread': [round(min(speeds), 2), round(max(speeds), 2)],
    'accuracies': [row['accuracy'] for row in rows],
    'digests': [row['digest'][:16] for row in rows],
    'runs': len(rows),
  }


if __name__ == '__main__':
  main()
