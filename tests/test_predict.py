import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import jaxres
from jaxres import cli, data, files, models, predict, weights
from jaxres.data import augment
from jaxres.data.statistics import IMAGENET
from jaxres.errors import InputError
from jaxres.weights import published, sources
from tests.helpers import CLASS_NAMES, make_arrays, merge, save_as_before
from tests.train.runs import make_run
from tests.weights.files import make_state

SEEN = {'mean': IMAGENET[0], 'std': IMAGENET[1], 'image_size': 32}
TOLD = ['--mean', '0.485,0.456,0.406', '--std', '0.229,0.224,0.225']


@pytest.mark.parametrize('channels', [3, 1])
def test_a_run_predicts_what_it_evaluates(config, tmp_path, npz, channels) -> None:
  run = make_run(config, tmp_path, npz, shape=(8, 8, channels))
  dataset = data.load(**merge(config)['data'])
  actual = sources.read(run, 'latest')
  model = models.create('tiny', num_classes=4)
  images = augment.normalize(dataset.test.device_data['image'], dataset.info.mean, dataset.info.std)
  expected = jax.jit(lambda v, x: model.apply(v, x, train=False))(actual.variables, images)
  paths = predict.find_images([str(tmp_path / 'images')])
  assert len(paths) == 40
  for batch_size in (7, 64):
    rows = [*predict.predict(predict.load(run, 'latest'), paths, batch_size)]
    np.testing.assert_allclose(np.stack([row.logits for row in rows]), expected, rtol=1e-5, atol=1e-5)
  top1 = json.loads((tmp_path / 'run/metrics.jsonl').read_text().splitlines()[-1])['test/top1']
  right = [row.logits.argmax() == label for row, label in zip(rows, dataset.test.device_data['label'], strict=True)]
  assert np.mean(right) == pytest.approx(top1)
  assert top1 > 0.4


def test_images_of_another_size_are_seen_as_evaluation_sees_them(config, tmp_path, npz) -> None:
  """The data set resizes arrays, predict files: both to 12 pixels, the center of 0.75 of the short side."""
  config = merge(config, data={'image_size': 8, 'eval_image_size': 12, 'center_crop': 0.75})
  run = make_run(config, tmp_path, npz, shape=(20, 26, 3))
  dataset = data.load(**config['data'])
  predictor = predict.load(run)
  paths = predict.find_images([str(tmp_path / 'images')])
  pixels = np.stack([predict.read(path, predictor) for path in paths])
  np.testing.assert_array_equal(pixels, dataset.test.device_data['image'])
  assert (predictor.mean, predictor.std) == (dataset.info.mean, dataset.info.std)


def test_the_tool_on_a_run(config, tmp_path, npz, capsys) -> None:
  run = make_run(config, tmp_path, npz)
  capsys.readouterr()
  (tmp_path / 'images/deep').mkdir()
  (tmp_path / 'images/deep/bad.jpg').write_bytes(b'no image')
  (tmp_path / 'images/notes.txt').write_text('left out')
  gone = str(tmp_path / 'gone.png')
  assert cli.main(['predict', run, str(tmp_path / 'images'), gone, '--json', '--top', '2']) == 2
  done = capsys.readouterr()
  rows = [json.loads(line) for line in done.out.splitlines()]
  assert [row['image'] for row in rows] == [str(tmp_path / f'images/{i:02}.png') for i in range(40)]
  for row in rows:
    first, second = row['top']
    assert {first['class'], second['class']} < set(CLASS_NAMES)
    assert 1 >= first['probability'] >= second['probability'] > 0
  assert done.err.splitlines() == [
    f'by {run}, step 24 (the latest, as nothing was validated)',
    f'error: {tmp_path}/images/deep/bad.jpg: cannot decode the image: cannot identify image file',
    f'error: {gone}: No such file or directory',
  ]
  assert cli.main(['predict', run, str(tmp_path / 'images/00.png')]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].endswith('00.png')
  assert sorted(line.split()[-1] for line in lines[1:]) == CLASS_NAMES
  total = sum(float(line.split('%')[0]) for line in lines[1:])
  assert total == pytest.approx(100, abs=0.03)


def test_published_weights_see_images_as_torchvision_does(tmp_path, monkeypatch) -> None:
  model = models.create('resnet18', num_classes=4)
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), weights.abstract(model, 3))
  weights.write(tmp_path / 'large.pth', weights.from_variables(variables, model))
  with pytest.raises(InputError, match='large.pth: it does not say what images it was trained on: give --mean'):
    predict.load(str(tmp_path / 'large.pth'))
  digits = files.sha256_of(tmp_path / 'large.pth')[:8]
  (tmp_path / 'large.pth').rename(tmp_path / f'large-{digits}.pth')
  monkeypatch.setitem(published.DIGITS, 'large-v2', digits)
  newer = predict.load(str(tmp_path / f'large-{digits}.pth'))
  assert (newer.image_shape, newer.center_crop) == ((224, 224, 3), 224 / 232)
  monkeypatch.delitem(published.DIGITS, 'large-v2')
  monkeypatch.setitem(published.DIGITS, 'large', digits)
  pixels = np.random.default_rng(0).integers(0, 256, (256, 300, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'noise.png')
  predictor = predict.load(str(tmp_path / f'large-{digits}.pth'))
  assert (predictor.mean, predictor.std) == IMAGENET
  seen = predict.read(tmp_path / 'noise.png', predictor)
  np.testing.assert_array_equal(seen, pixels[16:240, 38:262])  # 224 of 256: nothing to resize


def test_weights_see_images_as_they_are_told_to(tmp_path, tiny, capsys) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'noise.png')
  predictor = predict.load(str(tmp_path / 'tiny.pth'), **SEEN)
  seen = predict.read(tmp_path / 'noise.png', predictor)
  np.testing.assert_array_equal(seen, pixels[:, 4:36])
  (row,) = predict.predict(predictor, [tmp_path / 'noise.png'])
  images = (seen[None] / 255 - np.array(IMAGENET[0])) / np.array(IMAGENET[1])
  variables = weights.to_variables(make_state(4), models.create(tiny, num_classes=4))
  expected = jax.jit(lambda v, x: models.create(tiny, num_classes=4).apply(v, x, train=False))(variables, images)
  np.testing.assert_allclose(row.logits, expected[0], rtol=1e-3, atol=1e-3)
  assert predictor.class_names == ('0', '1', '2', '3')
  (tmp_path / 'names.txt').write_text('\n'.join(CLASS_NAMES))
  words = [str(tmp_path / 'tiny.pth'), str(tmp_path / 'noise.png'), '--class_names', str(tmp_path / 'names.txt')]
  assert cli.main(['predict', *words, '--top', '1', '--image_size', '16', *TOLD]) == 0
  assert capsys.readouterr().out.split()[-1] in CLASS_NAMES


def test_bad_input_is_one_line(tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  good = str(tmp_path / 'tiny.pth')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match='no images there; expected files that end in .jpg'):
    predict.find_images([str(tmp_path / 'empty')])
  with pytest.raises(InputError, match='--image_size: expected pixels, 1 or more, found 0'):
    predict.load(good, image_size=0)
  (tmp_path / 'names.txt').write_text('one\n')
  with pytest.raises(InputError, match='1 names, but the network has 4 classes'):
    predict.load(good, class_names=str(tmp_path / 'names.txt'))
  weights.write(tmp_path / 'four.pth', make_state(4, channels=4))
  with pytest.raises(InputError, match='predict makes images of 1 or 3 channels'):
    predict.load(str(tmp_path / 'four.pth'), mean=[0.5], std=[0.2], image_size=32)
  with pytest.raises(InputError, match='tiny.pth: it is no run, and has no step 7'):
    predict.load(good, step='7')
  (tmp_path / 'nan.npy').write_bytes(b'no image')
  assert [
    row.problem for row in predict.predict(predict.load(good, **SEEN), [tmp_path / 'nan.npy', tmp_path / 'none.png'])
  ] == [
    'cannot decode the image: cannot identify image file',
    'No such file or directory',
  ]
  for words in (['--top', '0'], ['--batch_size', '0']):
    with pytest.raises(SystemExit) as caught:
      cli.main(['predict', good, good, *words])
    assert caught.value.code == 2


def test_a_run_and_its_converted_weights_predict_the_same(config, tmp_path, npz, capsys) -> None:
  config = merge(config, data={'image_size': 8, 'eval_image_size': 12, 'center_crop': 0.75})
  run, target = make_run(config, tmp_path, npz, shape=(20, 26, 3)), tmp_path / 'converted'
  assert cli.main(['convert', run, str(target)]) == 0
  description = json.loads((target / 'model.json').read_text())
  assert description['preprocessing']['image_size'] == [12, 12]
  assert description['preprocessing']['center_crop'] == 0.75
  unknown = {key: value for key, value in description.items() if key not in ('preprocessing', 'description_sha256')}
  older = tmp_path / 'older'
  shutil.copytree(target, older)
  (older / 'model.json').write_text(json.dumps(unknown | {'format': 1}))
  with pytest.raises(InputError, match='older: it does not say what images it was trained on: give --mean'):
    predict.load(str(older))
  capsys.readouterr()
  answers = []
  for source in (run, str(target)):
    assert cli.main(['predict', source, str(tmp_path / 'images'), '--json', '--top=4']) == 0
    answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
  assert len(answers[0]) == 40
  for a, b in zip(*answers, strict=True):
    assert [row['class'] for row in a['top']] == [row['class'] for row in b['top']]
    np.testing.assert_allclose(*([row['probability'] for row in each['top']] for each in (a, b)), atol=1e-5)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((None, ['x.png']), 'predictor: expected what jaxres.predict.load returns, found NoneType'),
    ((0, 3), 'paths: expected paths of image files, found int'),
    ((0, [np.zeros((2, 2))]), 'paths: expected paths of image files, found ndarray'),
    ((0, ['x.png'], 0), 'batch_size: expected 1 or more, found 0'),
    ((0, ['x.png'], '3'), "batch_size: expected 1 or more, found '3'"),
  ],
)
def test_wrong_arguments_from_python_are_one_line(arguments, message, tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  predictor = predict.load(tmp_path / 'tiny.pth', **SEEN)
  first, *rest = arguments
  with pytest.raises(InputError, match=message):
    next(predict.predict(predictor if first == 0 else first, *rest))


def test_paths_may_be_strings(tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'x.png')
  predictor = predict.load(tmp_path / 'tiny.pth', **SEEN)
  (one,) = predict.predict(predictor, [str(tmp_path / 'x.png')])
  (two,) = predict.predict(predictor, str(tmp_path / 'x.png'))
  np.testing.assert_array_equal(one.logits, two.logits)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'mean': [0.5]}, '--mean: give --mean and --std, or neither'),
    ({'mean': [0.5], 'std': [0.0], 'image_size': 8}, '--std: expected numbers above 0'),
    ({'mean': [0.5, 0.5], 'std': [0.1, 0.1], 'image_size': 8}, 'expected 3 numbers, one a channel, found 2'),
    ({'mean': 'x', 'std': [0.1], 'image_size': 8}, "mean: expected numbers, one a channel, found 'x'"),
    ({'mean': [0.5], 'std': [0.1], 'image_size': 8, 'center_crop': 2.0}, r'--center_crop: expected a value in \(0, 1]'),
    ({'mean': [0.5], 'std': [0.1]}, 'it does not say what images'),
  ],
)
def test_preprocessing_that_cannot_be(given, message, tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  with pytest.raises(InputError, match=message):
    predict.load(str(tmp_path / 'tiny.pth'), **given)


def test_a_run_of_before_the_statistics_were_written(config, tmp_path, npz, monkeypatch) -> None:
  save_as_before(monkeypatch)
  run = make_run(config, tmp_path, npz)
  info = json.loads((tmp_path / 'run/data.json').read_text())
  (tmp_path / 'run/data.json').write_text(json.dumps({k: v for k, v in info.items() if k != 'mean'}))
  with pytest.raises(InputError, match='data.json: mean: missing; expected a list of 1 values or more'):
    predict.load(run)


def make_hub(directory, state) -> str:
  """Write a directory as it is on Hugging Face's hub: its config.json is none of jaxres."""
  directory.mkdir()
  (directory / 'config.json').write_text(json.dumps({'architectures': ['ResNetForImageClassification'], 'model': 3}))
  weights.write(directory / 'model.safetensors', state)
  return str(directory)


def test_every_way_to_name_the_same_weights(tmp_path, tiny, capsys) -> None:
  """A folder of the hub, its file, and both with their kind in front predict and explain alike."""
  hub, image = make_hub(tmp_path / 'hub', make_state(4)), tmp_path / 'noise.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(image)
  file, answers = f'{hub}/model.safetensors', []
  told = [*TOLD, '--image_size=32']
  for source in (hub, file, f'torchvision:{file}', f'torchvision:{hub}'):
    assert cli.main(['predict', source, str(image), '--json', '--top=4', *told]) == 0
    answers.append(capsys.readouterr().out)
    words = ['--methods=saliency', f'--out={tmp_path}/x.png']
    assert cli.main(['explain', source, str(image), *words, *told]) == 0
    capsys.readouterr()
    with pytest.raises(InputError, match='it does not say what images it was trained on: give --mean'):
      predict.load(source)
  assert len(set(answers)) == 1
  cli.main(['convert', hub, str(tmp_path / 'out')])
  by_name = [predict.load(source, **SEEN) for source in (str(tmp_path / 'out'), f'jaxres:{tmp_path}/out')]
  capsys.readouterr()
  assert all(one.image_shape == (32, 32, 3) for one in by_name)
  with pytest.raises(SystemExit):
    cli.main(['evaluate', hub])
  assert capsys.readouterr().err == (
    f'error: {hub}: it is weights, which have no data; give some: --data DIR, FILE or NAME, such as --data cifar10\n'
  )


def test_class_names_of_a_file_from_windows_have_no_ends_of_lines(tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  (tmp_path / 'names.txt').write_bytes('\r\n'.join([*CLASS_NAMES, '']).encode())
  options = {'class_names': str(tmp_path / 'names.txt'), **SEEN}
  assert predict.load(str(tmp_path / 'tiny.pth'), **options).class_names == tuple(CLASS_NAMES)
  (tmp_path / 'names.txt').write_bytes(b'one\n\ntwo\nthree\n')
  with pytest.raises(InputError, match='names.txt: line 2 is empty; expected a name a line'):
    predict.load(str(tmp_path / 'tiny.pth'), **options)


def test_a_batch_takes_no_more_memory_than_its_images(tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  predictor = predict.load(str(tmp_path / 'tiny.pth'), **SEEN)
  images = np.zeros((9, *predictor.image_shape), np.uint8)
  outputs = predict.run_batches(predict.make_network(predictor), predictor.variables, images, 10**12)
  assert outputs.shape == (9, 4)


def test_a_run_on_images_that_are_not_square(config, npz, tmp_path, capsys) -> None:
  run, arrays = make_run(config, tmp_path, npz, shape=(8, 12, 3)), make_arrays(shape=(8, 12, 3))
  loaded = jaxres.load(run)
  assert loaded.image_shape == (8, 12, 3)
  actual = loaded.predict(arrays['test_x'])
  assert (actual.labels == arrays['test_y']).mean() == pytest.approx(loaded.evaluate().top1)
  file, other = str(tmp_path / 'images/05.png'), tmp_path / 'other.png'
  np.testing.assert_allclose(loaded.predict([file]).logits[0], actual.logits[5], rtol=1e-4, atol=1e-5)
  cli.main(['convert', run, str(tmp_path / 'weights')])
  converted = jaxres.load(tmp_path / 'weights').predict([file])
  np.testing.assert_allclose(converted.logits[0], actual.logits[5], rtol=1e-4, atol=1e-5)
  image = np.zeros((9, 12, 3), np.uint8)
  with pytest.raises(InputError, match='images: expected 8x12 pixels, found 9x12'):
    loaded.predict(image)
  Image.fromarray(image).save(other)
  capsys.readouterr()
  assert cli.main(['predict', run, str(other)]) == 2
  assert f'error: {other}: 9x12 pixels, and the network, which is not square, sees 8x12' in capsys.readouterr().err
