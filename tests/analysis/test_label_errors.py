"""Planted wrong labels and near-duplicates are found, on closed forms and by the tool."""

import collections
import csv
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from jaxres import cli
from jaxres.analysis import label_errors
from jaxres.evaluate import Outputs
from jaxres.train import loop
from tests.helpers import make_arrays, merge


def test_the_margin_by_hand() -> None:
  logits = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0], [1.0, 1.0, 0.5]], np.float32)
  labels = np.array([0, 1, 2])
  np.testing.assert_allclose(label_errors.label_margin(logits, labels), [-2, 3, 0.5])
  assert logits[0, 0] == 3.0


def test_confident_learning_by_hand() -> None:
  """Mean probabilities of the labeled class are 0.7 and 0.65: only the third example reaches another class's."""
  first = np.array([0.9, 0.9, 0.3, 0.6, 0.1])
  logits = np.log(np.stack([first, 1 - first], 1)).astype(np.float32)
  labels = np.array([0, 0, 0, 1, 1])
  np.testing.assert_array_equal(label_errors.find_candidates(logits, labels), [False, False, True, False, False])


def test_flipped_labels_are_detected() -> None:
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 10, 2000)
  logits = (rng.normal(size=(2000, 10)) + 8 * np.eye(10)[truth]).astype(np.float32)
  flipped = rng.random(2000) < 0.02
  labels = np.where(flipped, (truth + rng.integers(1, 10, 2000)) % 10, truth)
  assert sk.average_precision_score(flipped, label_errors.label_margin(logits, labels)) > 5 * flipped.mean()
  actual = label_errors.find_candidates(logits, labels)
  assert (actual & flipped).sum() > 0.8 * flipped.sum()


def test_near_duplicates_are_detected_first() -> None:
  rng = np.random.default_rng(0)
  train_x, test_x = rng.normal(size=(50, 16)), rng.normal(size=(30, 16))
  test_x[[4, 9]] = train_x[[11, 42]] + 0.01 * rng.normal(size=(2, 16))
  outputs = {
    name: Outputs(np.zeros((len(x), 2)), np.zeros(len(x), int), x.astype(np.float32))
    for name, x in (('train', train_x), ('test', test_x))
  }
  actual = label_errors.find_near_duplicates(outputs, 5)
  assert len(actual) == 5
  assert {(p.split, p.example, p.other_split, p.other_example) for p in actual[:2]} == {
    ('test', 4, 'train', 11),
    ('test', 9, 'train', 42),
  }
  assert min(p.similarity for p in actual[:2]) > 0.99 > actual[2].similarity


def test_neighbors_are_scikit_learns(monkeypatch) -> None:
  from sklearn.neighbors import NearestNeighbors
  from sklearn.preprocessing import StandardScaler

  monkeypatch.setattr(label_errors, 'BLOCK', 7)
  rng = np.random.default_rng(1)
  a, b = rng.normal(size=(20, 5)), rng.normal(size=(31, 5)) * [1, 2, 3, 4, 5] + 1
  scaler = StandardScaler().fit(b)
  distance, index = (
    NearestNeighbors(n_neighbors=1, metric='cosine').fit(scaler.transform(b)).kneighbors(scaler.transform(a))
  )
  actual, similarity = label_errors.find_nearest(a, b)
  np.testing.assert_array_equal(actual, index[:, 0])
  np.testing.assert_allclose(similarity, 1 - distance[:, 0], atol=1e-5)


def test_the_tool(config, npz, tmp_path, capsys) -> None:
  arrays = make_arrays((160, 40))
  wrong = [3, 50, 101]
  arrays['train_y'][wrong] = (arrays['train_y'][wrong] + 1) % 4
  arrays['test_x'][7] = arrays['train_x'][23]
  names = ['<ant>', 'bee', 'cat', 'dog']
  config = merge(config, data={'path': npz(**arrays, class_names=names)}, augment={'crop_pad': 0})
  loop.train_and_evaluate(config, tmp_path / 'run')
  capsys.readouterr()
  assert cli.main(['errors', str(tmp_path / 'run'), '--top', '8', '--json', str(tmp_path / 'found.json')]) is None
  out = capsys.readouterr().out
  actual = json.loads((tmp_path / 'found.json').read_text())
  worst = actual['labels']['train']['worst']
  assert set(wrong) <= {row['index'] for row in worst}
  assert worst[0]['file'] is None
  assert worst[0]['label'] != worst[0]['predicted']
  assert set(actual['labels']) == {'train', 'test'}
  same = actual['duplicates'][0]
  assert (same['split'], same['example'], same['other_example']) == ('test', 7, 23)
  assert same['difference'] == 0
  recalls = [row['recall'] for row in actual['classes']]
  assert recalls == sorted(recalls)
  assert len(recalls) == 4
  html = (tmp_path / 'run/errors.html').read_text()
  assert '&lt;ant&gt;' in html
  assert '<ant>' not in html
  assert html.count('data:image/png;base64,') == 2 * len(actual['duplicates']) + sum(
    len(local['worst']) for local in actual['labels'].values()
  )
  assert str(tmp_path / 'run/errors.html') in out
  with pytest.raises(SystemExit):
    cli.main(['errors', str(tmp_path / 'run'), '--top', '0'])
  assert capsys.readouterr().err == 'error: --top: expected 1 or more, found 0\n'


def test_files_are_named(config, tmp_path, capsys) -> None:
  rng, arrays = np.random.default_rng(0), make_arrays((60, 20))
  for i, (image, label) in enumerate(zip(arrays['train_x'], arrays['train_y'], strict=True)):
    file = tmp_path / 'photos' / f'class{rng.integers(4) if i < 10 else label}' / f'{i:02}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)
  config = merge(config, data={'name': 'folder', 'path': str(tmp_path / 'photos'), 'image_size': 8, 'val': 0.25})
  loop.train_and_evaluate(config, tmp_path / 'run')
  assert cli.main(['errors', str(tmp_path / 'run'), '--top', '8', '--json', str(tmp_path / 'found.json')]) is None
  assert cli.main(['report', str(tmp_path / 'run')]) is None
  actual = json.loads((tmp_path / 'found.json').read_text())
  html = (tmp_path / 'run/errors.html').read_text()
  rows = [row for split in actual['labels'].values() for row in split['worst']]
  assert len({row['file'] for row in rows}) == len(rows) > 8
  for row in rows:
    file = pathlib.Path(row['file'])
    assert file.is_file()
    assert file.parent.name == row['label']
    assert f'photos/{file.parent.name}/{file.name}' in html
  for row in actual['duplicates']:
    assert [pathlib.Path(row[name]).parent.name for name in ('file', 'other_file')] == row['labels']
  assert 'photos/class' in (tmp_path / 'run/report.html').read_text()


def write_photos(folder: pathlib.Path, sizes: tuple[int, int] = (60, 20), names: str = 'abcd') -> dict[str, str]:
  """Write images by class, with a hostile name among them; return the classes by the files' names."""
  arrays, classes = make_arrays(sizes), {}
  for i, (image, label) in enumerate(zip(arrays['train_x'], arrays['train_y'], strict=True)):
    name = os.fsdecode(b'a, "caf\xe9"\n.png') if i == 5 else f'{i:02}.png'
    classes[name] = names[label if i % 10 else (label + 1) % 4]  # a tenth is labeled wrong
    (folder / classes[name]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / classes[name] / name)
  return classes


def test_the_list_of_labels_is_training_data(config, tmp_path, capsys) -> None:
  written = write_photos(tmp_path / 'photos')
  config = merge(config, data={'name': 'folder', 'path': str(tmp_path / 'photos'), 'image_size': 8, 'val': 0.25})
  loop.train_and_evaluate(config, tmp_path / 'run')
  listed = tmp_path / 'labels.csv'
  assert cli.main(['errors', str(tmp_path / 'run'), '--json', f'{tmp_path}/e.json', '--out-csv', str(listed)]) is None
  assert f'jaxres train {listed}' in capsys.readouterr().out
  with listed.open(encoding='utf-8', errors='surrogateescape', newline='') as stream:
    rows = list(csv.DictReader(stream))
  assert {pathlib.Path(row['path']).name: row['label'] for row in rows} == written
  splits = json.loads((tmp_path / 'e.json').read_text())['labels']
  counts = collections.Counter(row['split'] for row in rows)
  assert counts == {split: each['examples'] for split, each in splits.items()}
  candidates = [row for row in rows if row['candidate']]
  assert len(candidates) == sum(each['candidates'] for each in splits.values()) > 0
  assert rows[: len(candidates)] == candidates
  margins = [float(row['margin']) for row in candidates]
  assert margins == sorted(margins, reverse=True)
  again = merge(config, data={'name': 'csv', 'path': str(listed), 'val': 0.0})
  loop.train_and_evaluate(again, tmp_path / 'again')
  splits = json.loads((tmp_path / 'again/data.json').read_text())['splits']
  assert all(f'{count} examples' in splits[split] for split, count in counts.items())
  with pytest.raises(SystemExit):
    cli.main(['errors', str(tmp_path / 'again'), '--data_path', str(listed), '--out-csv', str(listed)])
  assert capsys.readouterr().err == (
    f'error: --out-csv: {listed} is the data of the run; expected another file to write\n'
  )


def test_examples_that_are_no_files_are_not_listed(config, tmp_path, capsys) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run')
  capsys.readouterr()
  with pytest.raises(SystemExit):
    cli.main(['errors', str(tmp_path / 'run'), '--out-csv', str(tmp_path / 'labels.csv')])
  assert "the examples of data.name='arrays' are no files; the JSON (--json) has" in capsys.readouterr().err
  assert not (tmp_path / 'labels.csv').exists()


def test_a_weak_network_is_no_judge(config, tmp_path, capsys) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}, optim={'lr': 1e-6}), tmp_path / 'run')
  capsys.readouterr()
  cli.main(['errors', str(tmp_path / 'run'), '--json', str(tmp_path / 'e.json')])
  labels = json.loads((tmp_path / 'e.json').read_text())['labels']
  assert labels['test']['top1'] < 0.7
  assert labels['test']['weak']
  assert f'warning: test: the network is too weak to judge labels, its top-1 is {labels["test"]["top1"]:.1%}' in (
    capsys.readouterr().err
  )
