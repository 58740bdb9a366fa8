"""How well `jaxres errors` finds wrong labels: some training labels are flipped on purpose, and a network doubts them.

python benchmarks/flipped_labels.py --config configs/resnet20_cifar_quick.py --flip 0.02

Trains what main.py trains, on data of which a share ``--flip`` of the training labels is another class, drawn evenly,
and ranks the labels as `jaxres errors` does, by the network that was trained on them. Prints two JSON lines. ``margin``
is the ranking: its average precision, its ``chance`` (the share of flipped labels), and precision at as many labels as
are flipped, which is recall there too. ``confident learning`` is the candidates that it names: how many, precision and
recall. Labels that were wrong before count as right ones.
"""

import argparse
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from sklearn import metrics

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness
from jaxres import config as config_lib
from jaxres import data, errors, mistakes, runs, train


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--config', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--flip', type=float, default=0.02, help='the share of the training labels')
  parser.add_argument('--workdir', help='keep the run there, and the data')
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  args, overrides = parser.parse_known_args()
  with tempfile.TemporaryDirectory() as temporary, errors.one_line():
    options = config_lib.to_dict(config_lib.load(args.config, overrides))
    path = pathlib.Path(args.workdir or temporary)
    path.mkdir(parents=True, exist_ok=True)
    flipped = write(data.load(**options['data']), args.flip, path / 'data.npz')
    kept = {name: options['data'][name] for name in ('batch_size', 'seed')}
    options['data'] = {'name': 'arrays', 'path': str(path / 'data.npz')} | kept
    scores = train.train_and_evaluate(options, path / 'run')
    (run,) = runs.read([str(path / 'run')], step='latest')
    rows = found(run, flipped)
  context = {'benchmark': 'flipped_labels', 'config': args.config, 'overrides': overrides, 'flip': args.flip}
  context |= {'test_top1': scores['test/top1'], 'epochs': options['train']['epochs']} | harness.machine()
  harness.report([row | context for row in rows], args.out)


def write(dataset: data.Dataset, share: float, path: pathlib.Path) -> np.ndarray:
  """Write the data with ``share`` of its training labels flipped; return which, bool ``[N]``."""
  train_x, train_y, test_x, test_y = (
    np.asarray(split.constants[name]) for split in (dataset.train, dataset.test) for name in ('image', 'label')
  )
  rng, classes = np.random.default_rng(0), len(dataset.info.class_names)
  flipped = np.zeros(len(train_y), bool)
  flipped[rng.choice(len(train_y), round(share * len(train_y)), replace=False)] = True
  others = (train_y + rng.integers(1, classes, len(train_y))) % classes
  arrays = {'train_x': train_x, 'train_y': np.where(flipped, others, train_y), 'test_x': test_x, 'test_y': test_y}
  np.savez(path, **arrays, class_names=dataset.info.class_names)
  return flipped


def found(run: runs.Run, flipped: np.ndarray) -> list[dict[str, Any]]:
  """Return the two rows."""
  logits, labels, _ = runs.outputs(run, 'train')
  suspicion, candidates = mistakes.suspicion(logits, labels), mistakes.candidates(logits, labels)
  first = np.argsort(-suspicion, kind='stable')[: flipped.sum()]
  average = metrics.average_precision_score(flipped, suspicion)
  hits = int((candidates & flipped).sum())
  counts = {'examples': len(labels), 'flipped': int(flipped.sum())}
  margin = {'average_precision': average, 'chance': flipped.mean(), 'precision': flipped[first].mean()}
  confident = {
    'candidates': int(candidates.sum()),
    'precision': hits / candidates.sum(),
    'recall': hits / flipped.sum(),
  }
  rows = [{'side': 'margin'} | counts | margin, {'side': 'confident learning'} | counts | confident]
  return [{k: v if isinstance(v, str | int) else round(float(v), 4) for k, v in row.items()} for row in rows]


if __name__ == '__main__':
  main()
