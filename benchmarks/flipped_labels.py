"""How well `jaxres errors` finds wrong labels: some are flipped on purpose, and a network doubts them.

python benchmarks/flipped_labels.py --run runs/quick --flip 0.02
python benchmarks/flipped_labels.py --config configs/resnet20_cifar_quick.py --flip 0.02

A share ``--flip`` of the labels become another class, drawn evenly, and all are ranked as `jaxres errors` does. With
``--run`` they are those of the test split, which the run has not seen; with ``--config`` they are training labels, and
a network is trained on them first, as by main.py. Prints two JSON lines. ``margin`` is the ranking: its average
precision, its ``chance`` (the share of flipped labels), and precision at as many labels as are flipped, which is recall
there too. ``confident learning`` is the candidates that it names: how many, precision and recall. Labels that were
wrong before count as right ones.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn import metrics

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness
from jaxres import command_line, data
from jaxres import config as config_lib
from jaxres.analysis import label_errors, runs
from jaxres.errors import one_line
from jaxres.train import loop


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--run', help='a workdir of training, whose test labels are flipped')
  source.add_argument('--config', help='as of main.py, to train with; --config.section.field=value too')
  parser.add_argument('--step', default='best', help='of --run')
  parser.add_argument('--flip', type=float, default=0.02, help='the share of the labels')
  parser.add_argument('--workdir', help='keep the run of --config there, and its data')
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  args, overrides = parser.parse_known_args()
  with tempfile.TemporaryDirectory() as temporary, one_line():
    if args.run:
      (run,) = runs.read_runs([args.run], args.step)
      logits, clean, _ = runs.predict_split(run, 'test')
      labels, flipped = flip(clean, args.flip, len(run.class_names))
    else:
      run, flipped = train(
        command_line.load(args.config, overrides), args.flip, pathlib.Path(args.workdir or temporary)
      )
      logits, labels, _ = runs.predict_split(run, 'train')
    test = runs.predict_split(run, 'test')
  context = {'benchmark': 'flipped_labels', 'config': args.config, 'overrides': overrides, 'flip': args.flip}
  context |= {'model': run.config['model']['name'], 'data': 'test split' if args.run else 'training split'}
  context |= {
    'epochs': run.config['train']['epochs'],
    'test_top1': float((test.logits.argmax(1) == test.labels).mean()),
  }
  harness.report([row | context | harness.machine() for row in score_rows(logits, labels, flipped)], args.out)


def flip(labels: np.ndarray, share: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Return ``labels`` with ``share`` of them another class, and which, bool ``[N]``."""
  rng = np.random.default_rng(0)
  flipped = np.zeros(len(labels), bool)
  flipped[rng.choice(len(labels), round(share * len(labels)), replace=False)] = True
  others = (labels + rng.integers(1, classes, len(labels))) % classes
  return np.where(flipped, others, labels), flipped


def train(config: Mapping[str, Any], share: float, path: pathlib.Path) -> tuple[runs.Run, np.ndarray]:
  """Return a network trained on the data of ``config`` with training labels flipped, written to ``path``; and which."""
  options = config_lib.to_dict(config)
  path.mkdir(parents=True, exist_ok=True)
  dataset = data.load(**options['data'])
  names = dataset.info.class_names
  arrays = {
    f'{name}_{letter}': np.asarray(split.device_data[kind])
    for name, split in (('train', dataset.train), ('test', dataset.test))
    for letter, kind in (('x', 'image'), ('y', 'label'))
  }
  arrays['train_y'], flipped = flip(arrays['train_y'], share, len(names))
  np.savez(path / 'data.npz', **arrays, class_names=names)
  kept = {name: options['data'][name] for name in ('batch_size', 'seed')}
  options['data'] = {'name': 'arrays', 'path': str(path / 'data.npz')} | kept
  loop.train_and_evaluate(options, path / 'run')
  (run,) = runs.read_runs([str(path / 'run')], 'latest')
  return run, flipped


def score_rows(logits: np.ndarray, labels: np.ndarray, flipped: np.ndarray) -> list[dict[str, Any]]:
  """Return the two rows."""
  suspicion, candidates = label_errors.label_margin(logits, labels), label_errors.find_candidates(logits, labels)
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
