import concurrent.futures
import io
import json
import os
import re
import shutil
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxres import data
from jaxres.data import decode, sampler, stream
from jaxres.data.sources import tfds as tfds_lib
from jaxres.data.types import Arrays, Encoded
from jaxres.errors import InputError
from jaxres.train import loop
from tests.data.sets import encode, examples, features, png, write

NAMES = ['ant', 'bee', 'cat', 'dog']


def color_set(data_dir, n=(23, 9)):
  """Write random 6x5 RGB images with ids, class names and a fixed answer."""
  rng = np.random.default_rng(0)
  expected, splits = {}, {}
  for split, size in zip(('train', 'test'), n, strict=True):
    images = rng.integers(0, 256, (size, 6, 5, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, size)
    expected[split] = images, labels
    splits[split] = [{'id': f'{split}_{i:05d}', 'image': png(images[i]), 'label': int(labels[i])} for i in range(size)]
  features = {
    'id': tfds.features.Text(),
    'image': tfds.features.Image(shape=(6, 5, 3)),
    'label': tfds.features.ClassLabel(names=NAMES),
  }
  return write(data_dir, features, splits), expected


def complaint(*args):
  """Return the one line that ``read`` ends with, within 10 s."""
  start = time.monotonic()
  with pytest.raises(InputError) as caught:
    tfds_lib.read(*args)
  assert time.monotonic() - start < 10
  line = str(caught.value)
  assert '\n' not in line
  return line


def test_examples_come_in_the_order_of_their_ids(tmp_path):
  _, expected = color_set(tmp_path)
  stored = tfds.data_source('tiny', split='train', data_dir=tmp_path, download=False)
  ids = [example['id'] for example in stored]
  assert ids != sorted(ids)  # TFDS shuffles, so the order below is not that of the file

  source = tfds_lib.read('tiny', str(tmp_path))
  for split, (images, labels) in expected.items():
    actual = getattr(source, split)
    assert actual.images.dtype == np.uint8
    assert actual.labels.dtype == np.int32
    np.testing.assert_array_equal(actual.images, images)
    np.testing.assert_array_equal(actual.labels, labels)
  assert source.class_names == tuple(NAMES)


def test_a_gray_set_with_no_ids_and_no_class_names(tmp_path):
  images = np.random.default_rng(1).integers(0, 256, (7, 4, 4, 1), dtype=np.uint8)
  features = {
    'image': tfds.features.Image(shape=(4, 4, 1)),
    'label': tfds.features.ClassLabel(num_classes=3),
  }
  examples = [{'image': png(image), 'label': i % 3} for i, image in enumerate(images)]
  write(tmp_path, features, {'train': examples, 'test': examples[:2]})
  stored = list(tfds.data_source('tiny', split='train', data_dir=tmp_path, download=False))

  source = tfds_lib.read('tiny', str(tmp_path))
  np.testing.assert_array_equal(source.train.images, [e['image'] for e in stored])
  np.testing.assert_array_equal(source.train.labels, [e['label'] for e in stored])
  assert source.train.images.shape == (7, 4, 4, 1)
  assert len(source.test.labels) == 2
  assert source.class_names == ('0', '1', '2')


def test_the_default_directory_is_that_of_tfds(tmp_path, monkeypatch):
  color_set(tmp_path / 'sets')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'sets'))
  assert tfds_lib.is_prepared('tiny')
  assert len(tfds_lib.read('tiny').train.labels) == 23

  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'sets').rename(tmp_path / 'tensorflow_datasets')
  assert tfds_lib.is_prepared('tiny')


def test_the_newest_complete_version_is_read(tmp_path):
  folder, _ = color_set(tmp_path)
  other, _ = color_set(tmp_path / 'other', n=(3, 2))
  shutil.copytree(other, tmp_path / 'tiny' / '10.0.0')  # newer than 1.0.0, and than 9.0.0
  shutil.copytree(folder, tmp_path / 'tiny' / '9.0.0')
  shutil.copytree(folder, tmp_path / 'tiny' / 'incomplete.ABCDEF_11.0.0')
  assert len(tfds_lib.read('tiny', str(tmp_path)).train.labels) == 3


def test_an_interrupted_preparation_is_not_prepared(tmp_path):
  folder, _ = color_set(tmp_path)
  assert tfds_lib.is_prepared('tiny', str(tmp_path))
  folder.rename(folder.with_name('incomplete.ABCDEF_1.0.0'))
  assert not tfds_lib.is_prepared('tiny', str(tmp_path))


def test_a_missing_directory_names_the_path_and_the_fix(tmp_path):
  line = complaint('cifar10', str(tmp_path / 'no where'))
  assert f'not in {tmp_path}/no where (that directory does not exist)' in line
  assert f"`jaxres prepare cifar10 --data_dir '{tmp_path}/no where'`" in line
  assert 'data.download=True' in line


def test_a_missing_set_names_the_path_and_the_fix(tmp_path, monkeypatch):
  assert str(tmp_path / 'cifar100') in complaint('cifar100', str(tmp_path))
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  assert 'run `jaxres prepare cifar100` or' in complaint('cifar100', None)


@pytest.mark.parametrize(('name', 'meant'), [('cifar_10', 'cifar10'), ('tinny', 'tiny')])
def test_an_unknown_name_gets_the_nearest(tmp_path, name, meant):
  color_set(tmp_path)
  assert f'did you mean {meant!r}?' in complaint(name, str(tmp_path))


def test_another_format_says_so(tmp_path):
  folder, _ = color_set(tmp_path)
  info = json.loads((folder / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  assert not tfds_lib.is_prepared('tiny', str(tmp_path))
  line = complaint('tiny', str(tmp_path))
  assert f'{folder}: it is in tfrecord format; run `jaxres prepare tfrecord {folder} --data_dir ELSEWHERE`' in line

  info['fileFormat'] = 'riegeli'
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  line = complaint('tiny', str(tmp_path))
  assert f'{folder}: it is in riegeli format' in line
  assert "download_and_prepare(file_format='array_record')" in line
  (tmp_path / 'tiny').rename(tmp_path / 'cifar10')
  assert f'run `jaxres prepare cifar10 --data_dir {tmp_path}`' in complaint('cifar10', tmp_path)


def test_no_array_record_points_to_npz(tmp_path, monkeypatch):
  color_set(tmp_path)
  (tmp_path / 'tiny').rename(tmp_path / 'cifar10')
  monkeypatch.setitem(sys.modules, 'array_record', None)
  line = complaint('cifar10', str(tmp_path))
  assert 'array_record' in line
  assert '`jaxres prepare cifar10 --npz cifar10.npz`' in line
  assert 'data.name=arrays data.path=cifar10.npz' in line


def test_an_undecodable_image_names_its_example(tmp_path):
  good = png(np.zeros((6, 5, 3), np.uint8))
  for bad in (b'no image', good[:-30]):
    examples = [{'id': f'x_{i}', 'image': good, 'label': 0} for i in range(8)]
    examples[5]['image'] = bad
    features = {
      'id': tfds.features.Text(),
      'image': tfds.features.Image(shape=(6, 5, 3)),
      'label': tfds.features.ClassLabel(num_classes=2),
    }
    folder = write(tmp_path, features, {'train': examples, 'test': examples[:1]})
    line = complaint('tiny', str(tmp_path))
    assert f'{folder} train, example x_5: cannot decode its image' in line
    assert '0x' not in line  # no address of a buffer
    shutil.rmtree(tmp_path / 'tiny')


def test_images_of_two_sizes_are_refused_where_the_set_states_one(tmp_path):
  one = lambda side: {'image': png(np.zeros((side, side, 3), np.uint8)), 'label': 1}
  write(tmp_path, features((4, 4, 3)), {'train': [one(4)], 'test': [one(4), one(3)]})
  line = complaint('tiny', str(tmp_path))
  assert 'test, example 1: ' in line
  assert '(4, 4, 3)' in line
  assert '(3, 3, 3)' in line


def test_a_label_out_of_range_names_its_example(tmp_path):
  folder, expected = color_set(tmp_path)
  features = (folder / 'features.json').read_text()
  (folder / 'features.json').write_text(features.replace('"4"', '"3"'))
  (folder / 'label.labels.txt').unlink()
  at = int(np.flatnonzero(expected['train'][1] == 3)[0])
  line = complaint('tiny', str(tmp_path))
  assert f'train, example train_{at:05d}: label: expected 0 to 2, found 3' in line


def test_a_set_of_another_kind_is_refused(tmp_path):
  write(tmp_path, {'text': tfds.features.Text()}, {'train': [{'text': 'a'}]})
  assert 'found text: Text' in complaint('tiny', str(tmp_path))


def test_a_set_without_a_train_split_is_refused(tmp_path):
  write(tmp_path, features(), {'test': examples(3)})
  assert "no split 'train'; its splits: test" in complaint('tiny', str(tmp_path))


@pytest.mark.parametrize('shape', [(8, 8, 3), (None, None, 3)])
@pytest.mark.parametrize(
  ('sizes', 'expected', 'output'),
  [
    ({'train': 10, 'test': 4}, (10, None, 4), ''),
    ({'train': 10, 'validation': 3, 'test': 4}, (10, 3, 4), ''),
    ({'train': 10, 'validation': 3}, (10, None, 3), "its split 'validation' is evaluated as test: no other has labels"),
    ({'train': 10, 'validation': 3, 'test': -4}, (10, None, 3), "'validation' is evaluated as test"),
    ({'train': 10}, (8, None, 2), 'has no test split: 2 of its training images, a stratified fifth, are held out'),
    ({'train': 10, 'test': -4}, (8, None, 2), 'its test split has no labels and is left out'),
  ],
)
def test_splits(tmp_path, capsys, shape, sizes, expected, output):
  """A negative size is that of a split without labels, as ImageNet's test."""
  splits = {
    split: [e | ({'label': -1} if size < 0 else {}) for e in examples(abs(size), side=8)]
    for split, size in sizes.items()
  }
  write(tmp_path, features(shape), splits)
  source = tfds_lib.read('tiny', str(tmp_path))
  actual = (source.train, source.val, source.test)
  assert tuple(part and len(part.labels) for part in actual) == expected
  for part in actual:
    assert isinstance(part, (Encoded if None in shape else Arrays) | None)
    assert part is None or set(part.labels) <= {0, 1}
  lines = capsys.readouterr().err
  assert output in lines
  assert lines.count('\n') == (0 if not output else 1 + (sizes == {'train': 10, 'test': -4}))
  if expected[0] == 8:
    assert np.bincount(source.train.labels).tolist() == [4, 4]


def test_images_of_many_sizes_are_decoded_when_asked_for(tmp_path):
  """The reference is TFDS's own reading, example by example."""
  given = examples(23)
  folder = write(tmp_path, features(ids=True), {'train': given, 'test': given[:5]}, shards=3)
  assert len(list(folder.glob('*train.array_record*'))) == 3
  stored = tfds.data_source(
    'tiny', split='train', data_dir=tmp_path, download=False, decoders={'image': tfds.decode.SkipDecoding()}
  )
  stored = sorted(stored, key=lambda example: example['id'])
  load = lambda **options: data.load('tiny', data_dir=str(tmp_path), batch_size=4, image_size=12, **options)
  resident, streamed = load(), load(pipeline='stream', crop_scale=())
  expected = np.stack([decode.decode_image(example['image'], 12) for example in stored])
  assert len({Image.open(io.BytesIO(e['image'])).size for e in stored}) > 10
  np.testing.assert_array_equal(resident.train.device_data['image'], expected)
  np.testing.assert_array_equal(resident.train.device_data['label'], [e['label'] for e in stored])
  assert resident.info.class_names == streamed.info.class_names == ('0', '1')
  at = sampler.train_indices(0, 3, 4, 23)
  (feed,) = streamed.train.step_inputs(3, 4)
  np.testing.assert_array_equal(feed['image'], expected[at])
  (feed,) = load(pipeline='stream', crop_scale=(0.2, 0.5)).train.step_inputs(3, 4)
  draws = stream.crop_draws(0, 3, 4)
  crops = [decode.decode_crops(stored[i]['image'], 12, (0.2, 0.5), draws[row].tolist()) for row, i in enumerate(at)]
  np.testing.assert_array_equal(feed['image'], crops)
  with pytest.raises(
    InputError, match=r'example x_0*\d+.png: it has \d+x\d+ pixels, and the first has .* data.image_size'
  ):
    data.load('tiny', data_dir=str(tmp_path))


def test_threads_read_the_right_records(tmp_path):
  given = examples(60)
  write(tmp_path, features(ids=True), {'train': given, 'test': given[:4]}, shards=4)
  train = tfds_lib.read('tiny', str(tmp_path)).train
  by_name = {e['id']: e['image'] for e in given}
  wanted = np.random.default_rng(0).integers(0, 60, 3000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    actual = list(pool.map(lambda at: (train.name_of(at).split('example ')[1], train.read_at(at)), wanted))
  assert [name for name, _ in actual] == [given[at]['id'] for at in wanted]
  assert all(image == by_name[name] for name, image in actual)


@pytest.mark.parametrize('pipeline', ['resident', 'stream'])
def test_a_bad_encoded_image_is_named_and_replaced(tmp_path, capsys, pipeline):
  given = examples(12)
  given[5]['image'] = given[5]['image'][:40]
  folder = write(tmp_path, features(ids=True), {'train': given, 'test': examples(2)})
  load = lambda max_bad: data.load(
    'tiny', data_dir=str(tmp_path), image_size=8, pipeline=pipeline, batch_size=12, max_bad=max_bad
  )
  name = f'{folder} train, example x_00005.png: cannot decode the image'
  with pytest.raises(InputError, match=f'^{re.escape(name)}.*; repair or remove it; data.max_bad is 0$'):
    list(load(0).train.step_inputs(0, 1))
  list(load(1).train.step_inputs(0, 1))
  assert f'bad training example 1 of at most 1: {name}' in capsys.readouterr().err


KINDS = ['L', '1', 'P', 'LA', 'RGBA', 'CMYK', 'I;16']


@pytest.mark.parametrize('kind', KINDS)
def test_kinds_of_encoded_images_become_rgb(tmp_path, kind):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
  if kind == 'I;16':
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8)
  else:
    image = Image.fromarray(pixels).convert(kind)
  content = encode(image, 'JPEG' if kind == 'CMYK' else 'PNG')
  given = [e | {'image': content} for e in examples(6)]
  write(tmp_path, features(), {'train': given, 'test': given})
  dataset = data.load('tiny', data_dir=str(tmp_path))
  actual = np.asarray(dataset.train.device_data['image'][0])
  assert np.ptp(actual) > 100
  np.testing.assert_array_equal(actual, decode.decode_image(content, None))
  if kind not in ('CMYK', 'I;16'):
    np.testing.assert_array_equal(actual, np.asarray(Image.open(io.BytesIO(content)).convert('RGB')))


def test_an_encoded_label_out_of_range_names_its_example(tmp_path):
  folder = write(
    tmp_path, features(ids=True, classes=3), {'train': [*examples(6), *examples(3, label=2)[2:]], 'test': examples(2)}
  )
  content = (folder / 'features.json').read_text()
  (folder / 'features.json').write_text(content.replace('"numClasses": "3"', '"numClasses": "2"'))
  with pytest.raises(
    InputError, match=r'train example \d \(.* train, example x_00002.png\) has label 2; expected 0 to 1'
  ):
    data.load('tiny', data_dir=str(tmp_path), image_size=8)


def test_names_and_configs(tmp_path):
  write(tmp_path, features((8, 8, 3)), {'train': examples(6, side=8), 'test': examples(2, side=8)}, config='small-v2')
  assert tfds_lib.list_known(tmp_path) == {*tfds_lib.PREPARABLE, 'tiny/small-v2'}
  assert data.load('tiny/small-v2', data_dir=str(tmp_path)).train.size == 6
  for name, meant in (
    ('tiny/smal-v2', 'tiny/small-v2'),
    ('foldr', 'folder'),
    ('cifar_10', 'cifar10'),
    ('tiny', 'tiny/small-v2'),
  ):
    with pytest.raises(InputError, match=f'data.name: unknown data set {name!r}') as caught:
      data.load(name, data_dir=str(tmp_path))
    output = str(caught.value)
    assert f'{meant!r}' in output or f', {meant};' in output  # the nearest word, or the last of those that are known
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('channels', [1, 4])
def test_training_on_gray_and_on_four_channels(tmp_path, tiny, channels):
  rng = np.random.default_rng(0)
  given = []
  for i in range(96):
    image = rng.integers(0, 60, (8, 8, channels), np.uint8)
    image[i % 2 * 4 : i % 2 * 4 + 4] += 150  # the upper or the lower half is bright
    given.append({'image': png(image), 'label': i % 2})
  write(tmp_path, features((8, 8, channels)), {'train': given[:64], 'test': given[64:]})
  config = {
    'model': {'name': tiny},
    'data': {'name': 'tiny', 'data_dir': str(tmp_path), 'batch_size': 16},
    'optim': {'lr': 0.1},
    'train': {'epochs': 6, 'eval_batch_size': 32},
  }
  assert loop.train_and_evaluate(config, tmp_path / 'run')['test/top1'] == 1.0


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[content.index(b'IDAT') + 9] ^= 1
  path.write_bytes(content)


DAMAGE = {
  'truncated': lambda path: os.truncate(path, path.stat().st_size // 2),
  'empty': lambda path: os.truncate(path, 0),
  'missing': lambda path: path.unlink(),
  'flipped': flip_a_bit,
  'no features': lambda path: (path.parent / 'features.json').unlink(),
  'info': lambda path: (path.parent / 'dataset_info.json').write_text('{"name": '),
}


@pytest.mark.parametrize('damage', DAMAGE)
@pytest.mark.parametrize('kept', [False, True])
def test_a_damaged_encoded_set_is_never_read(tmp_path, damage, kept):
  folder = write(tmp_path, features(), {'train': examples(40), 'test': examples(40)})
  load = lambda: data.load('tiny', data_dir=str(tmp_path), image_size=8)
  if kept:
    load()
  (path,) = folder.glob('*test.array_record*')
  DAMAGE[damage](path)
  with pytest.raises(InputError, match=f'{folder}|dataset_info.json') as caught:
    load()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_set_is_never_read(tmp_path, damage):
  folder, _ = color_set(tmp_path)
  (path,) = folder.glob('*test.array_record*')
  DAMAGE[damage](path)
  line = complaint('tiny', str(tmp_path))
  assert 'cannot be read: ' in line
  assert f'remove {folder}' in line or 'remove that folder' in line


@pytest.fixture(scope='module')
def cifar10():
  if 'JAXRES_TFDS_DIR' not in os.environ:
    pytest.skip('needs CIFAR-10: set JAXRES_TFDS_DIR to a directory of TFDS sets')
  return tfds_lib.read('cifar10', os.environ['JAXRES_TFDS_DIR'])


def test_cifar10_is_the_published_one(cifar10):
  assert cifar10.train.images.shape == (50_000, 32, 32, 3)
  assert cifar10.test.images.shape == (10_000, 32, 32, 3)
  np.testing.assert_array_equal(np.bincount(cifar10.train.labels), [5_000] * 10)
  np.testing.assert_array_equal(np.bincount(cifar10.test.labels), [1_000] * 10)
  # Integer sums: exact.
  counts = np.stack([np.bincount(cifar10.train.images[..., c].ravel(), minlength=256) for c in range(3)])
  values = np.arange(256) / 255
  mean = counts @ values / counts.sum(1)
  std = np.sqrt(counts @ values**2 / counts.sum(1) - mean**2)
  np.testing.assert_array_equal(mean.round(4), [0.4914, 0.4822, 0.4465])
  np.testing.assert_array_equal(std.round(4), [0.2470, 0.2435, 0.2616])


def test_cifar10_equals_what_tfds_decodes(cifar10):
  data_dir = os.environ['JAXRES_TFDS_DIR']
  stored = tfds.data_source('cifar10', split='test', data_dir=data_dir, download=False)
  assert cifar10.class_names == tuple(stored.dataset_info.features['label'].names)
  for example in (stored[i] for i in range(0, 10_000, 997)):
    at = int(example['id'].removeprefix(b'test_'))
    np.testing.assert_array_equal(cifar10.test.images[at], example['image'])
    assert cifar10.test.labels[at] == example['label']
