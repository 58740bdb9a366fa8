import numpy as np
import pytest

from jaxres import data
from jaxres.data import decode
from jaxres.data.statistics import channel_statistics
from jaxres.errors import InputError
from tests.helpers import make_arrays


def load(path: str, **options: object) -> data.Dataset:
  return data.load('arrays', path=path, **{'batch_size': 8} | options)


def labels(pipeline: data.Pipeline) -> np.ndarray:
  return np.asarray(pipeline.device_data['label'])


def test_validation_is_a_stratified_part_of_train(npz) -> None:
  complete, part = load(npz()), load(npz(), val=0.25)
  assert complete.val is None
  assert (part.train.size, part.val.size, part.test.size) == (72, 24, 40)
  assert np.bincount(labels(part.val)).tolist() == [6, 6, 6, 6]
  rows = lambda p: {image.tobytes() for image in np.asarray(p.device_data['image'])}
  assert rows(part.train) | rows(part.val) == rows(complete.train)
  assert not rows(part.train) & rows(part.val)
  assert rows(load(npz(), val=0.25, seed=1).val) != rows(part.val)


def test_limit_is_stratified_and_leaves_val_and_test_alone(npz) -> None:
  limited = load(npz(), val=0.25, limit=16)
  assert np.bincount(labels(limited.train)).tolist() == [4, 4, 4, 4]
  assert (limited.val.size, limited.test.size) == (24, 40)
  assert load(npz(), limit=1000).train.size == 96


@pytest.mark.parametrize('classes', [(3, 1), ('d', 'b'), ('3', '1'), ('d,b',)])
def test_classes_are_kept_and_numbered_in_the_order_given(npz, classes: tuple) -> None:
  content = make_arrays()
  kept = load(npz(**content, class_names=np.array(list('abcd'))), classes=classes)
  assert kept.info.class_names == ('d', 'b')
  wanted = np.isin(content['train_y'], (3, 1))
  np.testing.assert_array_equal(np.asarray(kept.train.device_data['image']), content['train_x'][wanted])
  np.testing.assert_array_equal(labels(kept.train), np.where(content['train_y'][wanted] == 3, 0, 1))


def test_classes_without_examples_are_refused(npz) -> None:
  with pytest.raises(InputError, match='the train split is empty'):
    load(npz(**make_arrays(), class_names=np.array(list('abcdef'))), classes=('e', 'f'))


def test_info_has_the_statistics_of_the_training_images(npz) -> None:
  info = load(npz()).info
  images = make_arrays()['train_x'] / 255
  np.testing.assert_allclose(info.mean, images.mean((0, 1, 2)))
  np.testing.assert_allclose(info.std, images.std((0, 1, 2)))
  assert info.image_shape == (8, 8, 3)


def test_a_constant_channel_has_a_harmless_deviation() -> None:
  assert channel_statistics(np.full((3, 2, 2, 1), 51, np.uint8)) == ((0.2,), (1.0,))


def test_cifar10_is_normalized_by_the_published_statistics(tfds_dir: str) -> None:
  dataset = data.load('cifar10', data_dir=tfds_dir, val=0.1)
  assert (dataset.train.size, dataset.val.size, dataset.test.size) == (45_000, 5_000, 10_000)
  assert np.bincount(labels(dataset.val)).tolist() == [500] * 10
  assert dataset.info.mean == (0.4914, 0.4822, 0.4465)
  assert dataset.info.class_names[3] == 'cat'


@pytest.mark.parametrize('pipeline', ['resident', 'stream'])
def test_evaluation_images_may_have_another_size(npz, pipeline: str) -> None:
  given = make_arrays()
  sizes = lambda dataset: [
    {p.get_batch(p.device_data, feed)['image'].shape[1:] for p in [split] for feed in split.eval_inputs(8)}
    for split in (dataset.train, dataset.val, dataset.test)
  ]
  dataset = load(npz(), pipeline=pipeline, image_size=6, eval_image_size=10, val=0.25)
  assert sizes(dataset) == [{(6, 6, 3)}, {(10, 10, 3)}, {(10, 10, 3)}]
  assert dataset.info.image_shape == (6, 6, 3)
  test = dataset.test
  batch = test.get_batch(test.device_data, next(test.eval_inputs(40)))
  np.testing.assert_array_equal(batch['image'][3], decode.resize_image(given['test_x'][3], 10))
  assert sizes(load(npz(), pipeline=pipeline, eval_image_size=10, val=0.25)) == [{(8, 8, 3)}, *[{(10, 10, 3)}] * 2]
  alike = load(npz(), pipeline=pipeline, image_size=6, eval_image_size=6, val=0.25)
  assert sizes(alike) == sizes(load(npz(), pipeline=pipeline, image_size=6, val=0.25)) == [{(6, 6, 3)}] * 3


def test_an_npz_may_bring_its_val(npz) -> None:
  given = make_arrays()
  local = {'val_x': given['test_x'][:12], 'val_y': given['test_y'][:12]}
  dataset = load(npz(**given, **local))
  np.testing.assert_array_equal(dataset.val.device_data['image'], local['val_x'])
  np.testing.assert_array_equal(labels(dataset.val), local['val_y'])
  with pytest.raises(InputError, match='no array val_y'):
    load(npz(**given, val_x=local['val_x']))
  with pytest.raises(InputError, match='train_x and val_x hold images of different shapes'):
    load(npz(**given, val_x=local['val_x'][:, 1:], val_y=local['val_y']))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'eval_image_size': 0}, 'data.eval_image_size: expected pixels, 1 or more, found 0'),
    ({'batch_size': 0}, 'data.batch_size: expected 1 or more, found 0'),
    ({'batch_size': -8}, 'data.batch_size: expected 1 or more, found -8'),
    ({'val': 1.0}, r'data.val: expected a value in \[0, 1\), found 1.0'),
    ({'val': 0.001}, 'data.val: 0.001 of 96 training examples leaves a split empty'),
    ({'limit': 0}, 'data.limit: expected 1 or more, found 0'),
    ({'classes': ('9', 1)}, "data.classes: unknown class '9'; known: 0, 1, 2, 3"),
    ({'classes': (1,)}, 'data.classes: expected at least two different classes'),
    ({'classes': (1, 1)}, 'data.classes: expected at least two different classes'),
    ({'classes': (1, -1)}, 'data.classes: unknown class -1'),
  ],
)
def test_bad_fields(npz, options: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    load(npz(), **options)


def test_an_unknown_data_set() -> None:
  with pytest.raises(InputError, match=r"data.name: unknown data set 'cifar11'; did you mean 'cifar10'\?"):
    data.load('cifar11')


@pytest.mark.parametrize(
  ('label', 'message'),
  [
    (-1, 'train example 17 has label -1; expected 0 to 3'),
    (4, 'class_names has 4 names, and a training example has label 4'),
  ],
)
def test_a_label_out_of_range(npz, label: int, message: str) -> None:
  content = make_arrays() | {'class_names': np.array(list('abcd'))}
  content['train_y'][17] = label
  with pytest.raises(InputError, match=message):
    load(npz(**content))


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('digits', {'path': 'photos'}, "data.name='digits' reads no file; set data.name to folder or csv or arrays"),
    ('arrays', {'path': ''}, 'reads an .npz file; give its path'),
    ('arrays', {'path': '/tmp'}, '/tmp is a folder; expected an .npz file, or set data.name=folder'),
    ('folder', {'path': ''}, 'give its path'),
    ('digits', {'seed': -1}, r'data.seed: expected a value in .*, found -1'),
    ('mnist', {'data_dir': '/none'}, r'mnist: not in /none .*run `jaxres prepare mnist --data_dir /none`'),
  ],
)
def test_what_a_name_cannot_do(name: str, options: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    data.load(name, **options)


def test_a_fingerprint_is_of_the_labels_in_their_order(npz) -> None:
  content = make_arrays()
  first = load(npz(**content)).info.splits
  assert first.keys() == {'train', 'test'}
  assert first['train'].startswith('96 examples, labels ')
  content['train_y'][[0, 1]] = content['train_y'][[1, 0]]
  second = load(npz(**content)).info.splits
  assert second['test'] == first['test']
  assert second['train'] != first['train']


def test_missing_cifar10_is_explained(tmp_path) -> None:
  with pytest.raises(InputError, match=r'jaxres prepare cifar10'):
    data.load('cifar10', data_dir=str(tmp_path))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'limit': 2}, "no training example is of the class 'c' and 1 other classes"),
    ({}, "no training example is of the class 'e': of 5 classes"),
  ],
)
def test_classes_without_a_training_example_are_told(npz, capsys, options: dict, message: str) -> None:
  names = list('abcd') if options else list('abcde')
  load(npz(**make_arrays(), class_names=np.array(names)), **options)
  assert message in capsys.readouterr().err
  load(npz())
  assert capsys.readouterr().err == ''
