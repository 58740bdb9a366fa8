"""The tool on a run of seconds, and the folds against what scikit-learn promises of its folds."""

import json

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from jaxres import cli, data
from jaxres.data import sampler
from jaxres.errors import InputError
from jaxres.sweep import crossval
from tests.helpers import ROOT, make_arrays, merge

# ml_collections loads a config file so.
pytestmark = pytest.mark.filterwarnings(r'ignore:the load_module\(\) method:DeprecationWarning')


def test_folds_are_a_stratified_partition() -> None:
  labels = np.random.default_rng(0).integers(0, 3, 103)
  actual = sampler.assign_folds(labels, 5, seed=1)
  assert sorted(np.bincount(actual)) == [20, 20, 21, 21, 21]
  for k in range(3):
    counts = np.bincount(actual[labels == k], minlength=5)
    assert np.ptp(counts) <= 1
  theirs = [len(test) for _, test in StratifiedKFold(5).split(labels, labels)]
  assert sorted(np.bincount(actual)) == sorted(theirs)
  assert (actual != sampler.assign_folds(labels, 5, seed=2)).any()


@pytest.mark.parametrize('count', [2, 5])
def test_each_example_is_held_out_once(npz, count: int) -> None:
  path = npz(**make_arrays())
  everything = make_arrays()['train_x']
  held_out = []
  for k in range(count):
    dataset = data.load('arrays', path=path, batch_size=8, fold=(k, count))
    assert dataset.train.size + dataset.val.size == 96
    held_out.append(dataset.val.device_data['image'])
    per_class = np.bincount(dataset.val.device_data['label'], minlength=4)
    assert set(per_class) <= {24 // count, -(-24 // count)}  # of 24 examples of each class
  rows = lambda images: sorted(map(bytes, images))
  assert rows(np.concatenate(held_out)) == rows(everything)


def test_cross_validation_trains_a_run_for_each_fold(config, tmp_path, capsys) -> None:
  actual = crossval.cross_validate(merge(config, train={'epochs': 1}), str(tmp_path), 3)
  stored = json.loads((tmp_path / 'folds.json').read_text())
  assert stored['val/top1']['values'] == list(actual['val/top1'].values)
  assert actual['val/top1'].mean == pytest.approx(np.mean(actual['val/top1'].values))
  for k in range(3):
    assert json.loads((tmp_path / f'fold{k}/config.json').read_text())['data']['fold'] == [k, 3]
  assert '3 folds' in capsys.readouterr().out


def test_the_tool(tmp_path, monkeypatch) -> None:
  called = []
  monkeypatch.setattr(crossval, 'cross_validate', lambda *args: called.append(args))
  config = str(ROOT / 'configs/digits.py')
  cli.main(['crossval', '--config', config, '--workdir', str(tmp_path), '--folds', '4', '--config.train.epochs=2'])
  ((options, workdir, folds),) = called
  assert (options.train.epochs, workdir, folds) == (2, str(tmp_path), 4)


def test_bad_input_is_one_line(npz, capsys) -> None:
  path = npz()
  for fold in ((1,), (2, 2), (-1, 3), (0, 1)):
    with pytest.raises(InputError, match='data.fold: expected'):
      data.load('arrays', path=path, fold=fold)
  with pytest.raises(InputError, match='data.val=0.5 holds examples out too'):
    data.load('arrays', path=path, fold=(0, 2), val=0.5)
  with pytest.raises(InputError, match='data.fold: 97 folds of 96 training examples'):
    data.load('arrays', path=path, fold=(0, 97))
  local = make_arrays()
  path = npz(**local, val_x=local['test_x'], val_y=local['test_y'])
  with pytest.raises(InputError, match='data.fold: .* its own val split'):
    data.load('arrays', path=path, fold=(0, 2))
  with pytest.raises(SystemExit):
    cli.main(['crossval', '--config', str(ROOT / 'configs/digits.py'), '--workdir', 'x', '--folds', '1'])
  assert capsys.readouterr().err == 'error: --folds: expected 2 or more, found 1\n'


def test_folds_of_two_rules_are_refused(tmp_path) -> None:
  for k, rule in ((0, 1), (1, 2)):
    (tmp_path / f'fold{k}/checkpoints/1').mkdir(parents=True)
    (tmp_path / f'fold{k}/data.json').write_text(json.dumps({'class_names': ['a', 'b'], 'split_rule': rule}))
  for name in ('folder', 'csv'):
    configs = {f'fold{k}': {'data': {'name': name}} for k in range(3)}
    with pytest.raises(InputError, match='fold0 was drawn by an older jaxres, and fold1 .*would overlap'):
      crossval.check_rules(str(tmp_path), configs)
    crossval.check_rules(str(tmp_path), {'fold1': configs['fold1'], 'fold2': configs['fold2']})
  crossval.check_rules(str(tmp_path), {f'fold{k}': {'data': {'name': 'arrays'}} for k in range(3)})


def test_folds_beyond_the_examples_are_refused_at_once(config, tmp_path) -> None:
  with pytest.raises(InputError, match='data.fold: 50000 folds of 96 training examples; use fewer'):
    crossval.cross_validate(config, str(tmp_path), 50_000)
