"""`jaxres evaluate ... --data`: runs and weights of any kind on data other than a run's."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxres import cli, models, predict, weights
from jaxres.analysis import other_data
from jaxres.errors import InputError
from tests.helpers import CLASS_NAMES, make_arrays, merge
from tests.train.runs import make_run
from tests.weights.files import make_state

TOLD = ['--mean', '0.5', '--std', '0.25', '--image_size', '8']


def write_folder(root, images, labels, names=CLASS_NAMES) -> str:
  """Write images as files, a folder for each class."""
  for at, (image, label) in enumerate(zip(images, labels, strict=True)):
    (root / names[label]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / names[label] / f'{at:02}.png')
  return str(root)


def evaluate(tmp_path, *words: str) -> dict:
  assert cli.main(['evaluate', *words, '--out', str(tmp_path / 'scores.json')]) is None
  return json.loads((tmp_path / 'scores.json').read_text())


def fail(capsys, *words: str) -> str:
  capsys.readouterr()
  with pytest.raises(SystemExit) as caught:
    cli.main(['evaluate', *words])
  assert caught.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


def test_a_run_and_its_converted_directory_on_a_folder(config, tmp_path, npz, capsys) -> None:
  config = merge(config, data={'image_size': 8, 'eval_image_size': 12, 'center_crop': 0.75})
  run, target = make_run(config, tmp_path, npz, shape=(20, 26, 3)), str(tmp_path / 'converted')
  cli.main(['convert', run, target])
  content = make_arrays(shape=(20, 26, 3))
  folder = write_folder(tmp_path / 'photos', content['test_x'], content['test_y'])
  on_its_data = evaluate(tmp_path, run)['runs']['run']
  assert 'data' not in evaluate(tmp_path, run)
  capsys.readouterr()
  both = [evaluate(tmp_path, source, '--data', folder) for source in (run, target)]
  out = capsys.readouterr().out
  first, second = both[0]['runs']['run'], both[1]['runs']['converted']
  assert {k: v for k, v in first.items() if k != 'origin'} == {k: v for k, v in second.items() if k != 'origin'}
  assert (both[0]['data'], both[0]['split'], both[0]['classes_by']) == (folder, 'all', 'name')
  assert first['examples'] == 40
  assert first['top1'] == on_its_data['top1']
  assert first['loss'] == pytest.approx(on_its_data['loss'], rel=1e-5)
  assert first['preprocessing']['image_size'] == [12, 12]
  assert 'the data is ' in ' '.join(out.split())
  assert '40 all examples' in ' '.join(out.split())
  together = evaluate(tmp_path, run, target, '--data', folder)
  assert together['pairs'][0]['difference'] == 0.0


def test_classes_are_matched_by_name_and_a_subset_is_scored(config, tmp_path, npz, capsys) -> None:
  run = make_run(config, tmp_path, npz)
  content = make_arrays()
  two = np.isin(content['test_y'], [1, 3])
  folder = write_folder(tmp_path / 'two', content['test_x'][two], content['test_y'][two])
  scores = evaluate(tmp_path, run, '--data', folder)['runs']['run']
  rows = [*predict.predict(predict.load(run), predict.find_images([folder]))]
  right = [CLASS_NAMES[row.logits.argmax()] == row.path.parent.name for row in rows]
  assert scores['examples'] == two.sum()
  assert scores['top1'] == pytest.approx(np.mean(right))
  write_folder(tmp_path / 'two', content['test_x'][:1], [0], ['wolf'])
  line = fail(capsys, run, '--data', folder)
  assert line.startswith(f"error: --data: {folder} has examples of the class 'wolf', which {run}, step 24")
  assert line.endswith('does not know; known: ant, bee, cat, dog')


def test_splits_of_other_data(config, tmp_path, npz, capsys) -> None:
  run = make_run(config, tmp_path, npz)
  content = make_arrays()
  for split, count in (('train', 20), ('val', 12)):
    write_folder(tmp_path / 'photos' / split, content['train_x'][:count], content['train_y'][:count])
  folder = str(tmp_path / 'photos')
  assert evaluate(tmp_path, run, '--data', folder)['split'] == 'val'
  assert evaluate(tmp_path, run, '--data', folder, '--split=train')['runs']['run']['examples'] == 20
  assert fail(capsys, run, '--data', folder, '--split=test') == (
    f'error: --split: {folder} has no test split; it has train, val'
  )
  assert fail(capsys, run, '--split=all').startswith('error: --split: expected train or val or test')
  scores = evaluate(tmp_path, run, '--data', npz(**content, class_names=CLASS_NAMES[::-1]))
  assert (scores['split'], scores['classes_by'], scores['runs']['run']['examples']) == ('test', 'name', 40)


def test_weights_alone(tmp_path, npz, tiny, capsys) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  source, path = str(tmp_path / 'tiny.pth'), npz(**make_arrays())
  scores = evaluate(tmp_path, source, '--data', path, *TOLD)
  assert scores['classes_by'] == 'name'  # both have numbers
  images = (np.float32(make_arrays()['test_x']) / 255 - 0.5) / 0.25
  model = models.create(tiny, num_classes=4, dtype='float32')
  logits = model.apply(weights.to_variables(make_state(4), model), images, train=False)
  assert scores['runs']['tiny.pth']['top1'] == np.mean(np.argmax(logits, 1) == make_arrays()['test_y'])
  path = npz(**make_arrays(), class_names=CLASS_NAMES)
  by_number = evaluate(tmp_path, source, '--data', path, '--preset=cifar10', '--image_size=8')
  assert by_number['classes_by'] == 'number'
  assert [row['name'] for row in by_number['runs']['tiny.pth']['classes']] == CLASS_NAMES
  assert by_number['runs']['tiny.pth']['preprocessing']['std'] == [0.247, 0.2435, 0.2616]
  assert any('matched by their numbers' in note for note in by_number['runs']['tiny.pth']['notes'])
  assert fail(capsys, source) == (
    f'error: {source}: it is weights, which have no data; give some: --data DIR, FILE or NAME, such as --data cifar10'
  )
  assert fail(capsys, 'nowhere') == (
    'error: nowhere: no run there; expected a workdir, with config.json and checkpoints/'
  )
  assert 'it does not say what images it was trained on' in fail(capsys, source, '--data', path)
  assert "unknown preset 'cifar'; did you mean 'cifar10'?" in fail(capsys, source, '--data', path, '--preset=cifar')
  three = make_arrays(classes=3)
  path = npz(**three, class_names=CLASS_NAMES[:3])
  assert 'has 3 classes, and' in fail(capsys, source, '--data', path, *TOLD)


def test_arguments_of_weights_are_none_of_a_run(config, tmp_path, npz, capsys) -> None:
  run, path = make_run(config, tmp_path, npz), npz(**make_arrays(), class_names=CLASS_NAMES)
  assert fail(capsys, run, '--preset=imagenet').startswith('error: --preset: a run on its data has that in its config')
  assert 'is a run, which has its own' in fail(capsys, run, '--data', path, '--preset=imagenet')
  assert fail(capsys, run, '--data', 'nowhere').startswith('error: DATA: no such folder, file or data set: nowhere')
  assert fail(capsys, run, run, '--data', path).startswith('error: RUN: a network is named twice')
  assert fail(capsys, run, '--data', path, '--batch_size=0') == 'error: --batch_size: expected 1 or more, found 0'


def test_an_image_that_cannot_be_read_is_named(config, tmp_path, npz, capsys) -> None:
  run = make_run(config, tmp_path, npz)
  folder = write_folder(tmp_path / 'photos', make_arrays()['test_x'], make_arrays()['test_y'])
  (tmp_path / 'photos/cat/x.png').write_bytes(b'no image')
  line = fail(capsys, run, '--data', folder)
  assert 'photos/cat/x.png: cannot decode the image' in line
  assert line.endswith('repair or remove it')


def test_the_preset_of_data_with_published_statistics_is_taken_and_noted(tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  network = predict.load(str(tmp_path / 'tiny.pth'), fallback=other_data.fallback_preset('cifar10'))
  assert network.image_shape == (32, 32, 3)
  assert network.notes == (f'{tmp_path}/tiny.pth does not say its preprocessing: taken is the preset cifar10',)
  assert other_data.fallback_preset('digits') is None
  with pytest.raises(InputError, match='or --preset imagenet'):
    predict.load(str(tmp_path / 'tiny.pth'))
