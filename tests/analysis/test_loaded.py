"""``jaxres.load``: the answers of a run or of weights in Python, against those of `jaxres predict` and `evaluate`."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jaxres
from jaxres import cli, models, predict, weights
from jaxres import data as data_lib
from jaxres.analysis import loaded
from jaxres.data.statistics import IMAGENET
from jaxres.errors import InputError
from tests.helpers import CLASS_NAMES, make_arrays, merge
from tests.train.runs import make_run
from tests.weights.files import make_state

SEEN = {'mean': IMAGENET[0], 'std': IMAGENET[1], 'image_size': 32}


def load_images(folder: pathlib.Path) -> np.ndarray:
  return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob('*.png'))])


def test_arrays_and_files_get_the_answers_of_jaxres_predict(config, tmp_path, npz, capsys) -> None:
  """Both to 12 pixels, the center of 0.75 of the short side."""
  config = merge(config, data={'image_size': 8, 'eval_image_size': 12, 'center_crop': 0.75})
  run = make_run(config, tmp_path, npz, shape=(20, 26, 3))
  network = jaxres.load(run)
  images = load_images(tmp_path / 'images')
  of_arrays = network.predict(images)
  of_files = network.predict(tmp_path / 'images')
  assert of_arrays.logits.shape == (40, 4)
  assert of_arrays.logits.dtype == np.float32
  np.testing.assert_array_equal(of_arrays.logits, of_files.logits)
  assert of_files.files == tuple(sorted((tmp_path / 'images').glob('*.png')))
  assert of_arrays.files is None
  np.testing.assert_array_equal(network.predict([*map(str, of_files.files)]).logits, of_files.logits)
  np.testing.assert_array_equal(network.predict((images / np.float32(255)).astype(np.float32)).logits, of_files.logits)
  np.testing.assert_array_equal(network.predict([*images]).logits, of_files.logits)
  rows = [*predict.predict(predict.load(run), of_files.files)]
  np.testing.assert_array_equal(of_arrays.logits, np.stack([row.logits for row in rows]))
  capsys.readouterr()
  assert cli.main(['predict', run, str(tmp_path / 'images'), '--json', '--top=1']) == 0
  lines = [json.loads(line)['top'][0] for line in capsys.readouterr().out.splitlines()]
  assert [line['class'] for line in lines] == of_arrays.names
  np.testing.assert_allclose([line['probability'] for line in lines], of_arrays.probabilities.max(1), atol=1e-6)


def test_an_image_alone_gets_the_answer_that_it_gets_among_others(config, tmp_path, npz) -> None:
  network = jaxres.load(make_run(config, tmp_path, npz))
  images = load_images(tmp_path / 'images')
  together = network.predict(images).logits
  for count in (1, 2, 7, 9, 33):
    np.testing.assert_allclose(network.predict(images[:count]).logits, together[:count], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(network.predict(images[3]).logits, network.predict(images[3:4]).logits)
  assert network.predict(images[3]).logits.shape == (1, 4)
  np.testing.assert_array_equal(network.predict(images[:2]).logits, network.predict(images[:8]).logits[:2])


def test_few_programs_are_compiled(config, tmp_path, npz, monkeypatch) -> None:
  network = jaxres.load(make_run(config, tmp_path, npz))
  sizes = set()
  run = network._network
  network._network = lambda variables, batch: sizes.add(len(batch)) or run(variables, batch)
  images = load_images(tmp_path / 'images')
  for count in range(41):
    assert network.predict(images[:count]).logits.shape == (count, 4)
  assert sizes == {1, 8, 32}


def test_no_images_get_no_answers(config, tmp_path, npz) -> None:
  network = jaxres.load(make_run(config, tmp_path, npz))
  for empty in (np.zeros((0, 8, 8, 3), np.uint8), [], ()):
    answer = network.predict(empty)
    assert (answer.logits.shape, answer.probabilities.shape, answer.names) == ((0, 4), (0, 4), [])
    assert network.features(empty).shape == (0, 8)


def test_features_are_what_the_classifier_is_given(config, tmp_path, npz) -> None:
  network = jaxres.load(make_run(config, tmp_path, npz))
  images = load_images(tmp_path / 'images')
  features = network.features(images)
  assert features.shape == (40, 8)
  assert features.dtype == np.float32
  head = network.variables['params']['head']['fc']
  np.testing.assert_allclose(
    features @ head['kernel'] + head['bias'], network.predict(images).logits, rtol=1e-4, atol=1e-4
  )


def test_gray_images_of_a_color_network_and_the_other_way_round(config, tmp_path, npz) -> None:
  network = jaxres.load(make_run(config, tmp_path, npz))
  gray = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
  np.testing.assert_array_equal(network.predict(gray).logits, network.predict(gray.repeat(3, 3)).logits)
  Image.fromarray(gray[0, ..., 0]).save(tmp_path / 'gray.png')
  np.testing.assert_array_equal(network.predict(tmp_path / 'gray.png').logits, network.predict(gray[0]).logits)


def test_tensors_of_torch_may_have_the_channels_first(config, tmp_path, npz) -> None:
  torch = pytest.importorskip('torch')
  network = jaxres.load(make_run(config, tmp_path, npz))
  images = load_images(tmp_path / 'images')
  tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
  np.testing.assert_array_equal(network.predict(tensor).logits, network.predict(images).logits)
  as_floats = tensor.to(torch.float32) / 255  # as torchvision's ToTensor
  np.testing.assert_array_equal(network.predict(as_floats).logits, network.predict(images).logits)


def test_a_run_is_scored_as_jaxres_evaluate_does(config, tmp_path, npz) -> None:
  run = make_run(config, tmp_path, npz)
  cli.main(['evaluate', run, '--out', str(tmp_path / 'scores.json')])
  compared = json.loads((tmp_path / 'scores.json').read_text())
  evaluation = jaxres.load(run).evaluate()
  expected = compared['runs']['run']
  assert evaluation.top1 == expected['top1']
  assert evaluation.loss == expected['loss']
  assert [*evaluation.interval] == expected['intervals']['top1']
  assert (evaluation.examples, evaluation.split, evaluation.data) == (40, 'test', '')
  assert evaluation.origin == expected['origin'] == f'{run}, step 24 (the latest, as nothing was validated)'


def test_a_run_and_its_converted_directory_are_one_on_any_data(config, tmp_path, npz) -> None:
  """What was 59 % and 9.5 %: a directory that is scored by other pixels than its run."""
  config = merge(config, data={'image_size': 8, 'eval_image_size': 12, 'center_crop': 0.75})
  run, target = make_run(config, tmp_path, npz, shape=(20, 26, 3)), str(tmp_path / 'converted')
  assert cli.main(['convert', run, target]) == 0
  content = make_arrays(shape=(20, 26, 3))
  answers, evaluations = [], []
  for network in map(jaxres.load, (run, target)):
    assert network.class_names == tuple(CLASS_NAMES)
    answers.append(network.predict(content['test_x']))
    evaluations.append(network.evaluate((content['test_x'], content['test_y'])))
  np.testing.assert_array_equal(answers[0].logits, answers[1].logits)
  assert evaluations[0]._replace(origin='', scores={}) == evaluations[1]._replace(origin='', scores={})
  on_its_data = jaxres.load(run).evaluate()
  assert evaluations[0].top1 == on_its_data.top1 == np.mean(answers[0].labels == content['test_y'])
  assert evaluations[0].loss == pytest.approx(on_its_data.loss, rel=1e-5)
  assert len({*answers[0].labels.tolist()}) > 1


def test_labels_may_be_names_in_any_order(config, tmp_path, npz) -> None:
  network = jaxres.load(make_run(config, tmp_path, npz))
  content = make_arrays()
  names = [CLASS_NAMES[label] for label in content['test_y']]
  by_number = network.evaluate((content['test_x'], content['test_y']))
  by_name = network.evaluate((content['test_x'], names))
  order = [2, 0, 3, 1]
  turned = {'class_names': [CLASS_NAMES[k] for k in order], 'test_x': content['test_x']}
  turned['test_y'] = np.array([order.index(label) for label in content['test_y']])
  for other in (by_name, network.evaluate(turned)):
    assert (other.top1, other.loss) == (by_number.top1, by_number.loss)
  two = np.isin(content['test_y'], [1, 2])
  subset = network.evaluate((content['test_x'][two], [name for name, kept in zip(names, two, strict=True) if kept]))
  assert subset.examples == two.sum()
  assert subset.top1 == np.mean(network.predict(content['test_x'][two]).labels == content['test_y'][two])
  with pytest.raises(InputError, match=r"examples of the class 'wolf', which .* does not know; known: ant, bee, cat"):
    network.evaluate((content['test_x'][:2], ['cat', 'wolf']))


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    (None, 'images: expected an array .*, found a NoneType'),
    (3, 'found a int'),
    ({'image': 1}, 'found a dict'),
    (np.zeros((2, 8, 8, 3), np.int64), r'images: expected images uint8 .* found int64 \[2, 8, 8, 3\]; use .astype'),
    (
      np.full((2, 8, 8, 3), 200.0),
      'images: expected floats from 0 to 1, found float64 from 200 to 200; give images as',
    ),
    (np.full((1, 8, 8, 3), np.nan), 'images: expected floats from 0 to 1, found float64 from nan to nan'),
    (np.zeros((8, 8), np.uint8), r'images: expected images uint8 .* found uint8 \[8, 8\]'),
    (np.zeros((2, 8, 8, 5), np.uint8), r'images: expected 3 channels, found \[8, 8, 5\]'),
    (np.zeros((2, 0, 8, 3), np.uint8), r'found uint8 \[2, 0, 8, 3\]'),
    (np.array(['a', 'b']), 'images: expected an array of numbers, found ndarray'),
    ([np.zeros((2, 8, 8, 3), np.uint8)], r'images\[0\]: expected one image \[H, W, C\], found \[2, 8, 8, 3\]'),
    (['x.png', np.zeros((8, 8, 3), np.uint8)], 'images: expected paths alone, or arrays alone, found a ndarray among'),
    ('nowhere.png', 'nowhere.png: No such file or directory'),
  ],
)
def test_wrong_images_are_one_line_that_names_them(images, message, tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  network = jaxres.load(tmp_path / 'tiny.pth', **SEEN)
  with pytest.raises(InputError, match=message) as caught:
    network.predict(images)
  assert '\n' not in str(caught.value)


def test_wrong_arguments_are_one_line_that_names_them(tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  network = jaxres.load(tmp_path / 'tiny.pth', **SEEN)
  images = np.zeros((4, 8, 8, 3), np.uint8)
  for source in (network, network.model, ['a.pth'], None):
    with pytest.raises(InputError, match="source: expected a path or a name, such as 'runs/digits', found a "):
      jaxres.load(source)
  for batch_size in (0, 2.0, '3', True):
    with pytest.raises(InputError, match='batch_size: expected a whole number, 1 or more'):
      network.predict(images, batch_size=batch_size)
    with pytest.raises(InputError, match='batch_size: expected a whole number, 1 or more'):
      network.evaluate((images, [0, 1, 2, 3]), batch_size=batch_size)
  for data, message in (
    (None, 'data: .*tiny.pth is no run and has no data; give some'),
    ((images, [0, 1, 2]), r'data: labels: expected integers \[4\], found int64 \[3\]'),
    ((images, [0, 1, 2, 4]), 'outputs that have no names'),
    ((images, [0.0, 1.0, 2.0, 3.0]), r'data: labels: expected integers \[4\], found float64'),
    ({'tset': (images, [0, 1, 2, 3])}, "data: expected a dict with test, val or train, found one with 'tset'"),
    (iter([(images, [0, 1, 2, 3])]), 'data: a list_iterator can be read only once'),
    ('nowhere', 'DATA: no such folder, file or data set: nowhere'),
    (images[0], 'data, element 0'),
  ):
    with pytest.raises(InputError, match=message):
      network.evaluate(data)
  with pytest.raises(InputError, match='split: .* but the data is one split'):
    network.evaluate((images, [0, 1, 2, 3]), split='test')


# Values of no type that an argument takes; numbers are left out where a number is right.
ODD = [b'x', [], {}, (), {1}, object(), np.zeros(0), np.zeros((2, 2), object), slice(1), 1j, len, ..., 'x' * 5000]


@pytest.mark.parametrize('value', ODD, ids=[type(value).__name__ for value in ODD])
def test_any_argument_of_another_type_is_one_short_line(value, tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  place = str(tmp_path / 'tiny.pth')
  network = jaxres.load(place, **SEEN)
  calls = {
    'source': lambda: jaxres.load(value, **SEEN),
    'step': lambda: jaxres.load(place, value, **SEEN),
    'class_names': lambda: jaxres.load(place, class_names=value, **SEEN),
    'preset': lambda: jaxres.load(place, preset=value),
    'image_size': lambda: jaxres.load(place, **SEEN | {'image_size': value}),
    'center_crop': lambda: jaxres.load(place, **SEEN | {'center_crop': value}),
    'data': lambda: network.evaluate(value),
    'batch_size': lambda: network.predict(np.zeros((1, 8, 8, 3), np.uint8), batch_size=value),
    'weights': lambda: weights.read(value),
    'model.name': lambda: models.create(value),
    'model.dtype': lambda: models.create(tiny, dtype=value),
    'data.name': lambda: data_lib.load(value, data_dir=str(tmp_path)),
    'data.path': lambda: data_lib.load('folder', path=value),
    'paths': lambda: predict.find_images(value),
  }
  if isinstance(value, list | tuple | str):  # no paths are right
    del calls['paths']
  for name, call in calls.items():
    with pytest.raises(InputError) as caught:
      call()
    line = str(caught.value)
    assert '\n' not in line, name
    assert len(line) < 700, name


@pytest.mark.parametrize('data', [np.float32(1), np.array(1)])
def test_a_number_is_no_data(data, tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  with pytest.raises(InputError, match='^data: expected'):
    jaxres.load(tmp_path / 'tiny.pth', **SEEN).evaluate(data)


def test_import_is_light_and_help_works() -> None:
  code = (
    'import sys, jaxres; light = not {"jax", "numpy"} & {*sys.modules}; '
    'print(light, "load" in dir(jaxres), "source" in jaxres.load.__doc__)'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.split() == ['True', 'True', 'True']
  with pytest.raises(AttributeError, match="module 'jaxres' has no attribute 'lode'"):
    jaxres.lode  # noqa: B018
  assert jaxres.load is loaded.load
