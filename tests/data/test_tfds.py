import contextlib
import io
import json
import os
import shutil
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxres.data import tfds as jtfds
from jaxres.errors import InputError

NAMES = ['ant', 'bee', 'cat', 'dog']


def png(image):
  file = io.BytesIO()
  Image.fromarray(image.squeeze()).save(file, 'PNG')
  return file.getvalue()


def write(data_dir, features, splits):
  """Write a TFDS set with TFDS itself; a split is the list of its examples."""

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples):
      yield from enumerate(examples)

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    Tiny(data_dir=data_dir).download_and_prepare(file_format='array_record')
  return data_dir / 'tiny' / '1.0.0'


def colour_set(data_dir, n=(23, 9)):
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
    jtfds.read(*args)
  assert time.monotonic() - start < 10
  line = str(caught.value)
  assert '\n' not in line
  return line


def test_examples_come_in_the_order_of_their_ids(tmp_path):
  _, expected = colour_set(tmp_path)
  stored = tfds.data_source('tiny', split='train', data_dir=tmp_path, download=False)
  ids = [example['id'] for example in stored]
  assert ids != sorted(ids)  # TFDS shuffles, so the order below is not that of the file

  source = jtfds.read('tiny', str(tmp_path))
  for split, (images, labels) in expected.items():
    found = getattr(source, split)
    assert found.images.dtype == np.uint8
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
  assert source.class_names == tuple(NAMES)


def test_a_grey_set_with_no_ids_and_no_class_names(tmp_path):
  images = np.random.default_rng(1).integers(0, 256, (7, 4, 4, 1), dtype=np.uint8)
  features = {
    'image': tfds.features.Image(shape=(4, 4, 1)),
    'label': tfds.features.ClassLabel(num_classes=3),
  }
  examples = [{'image': png(image), 'label': i % 3} for i, image in enumerate(images)]
  write(tmp_path, features, {'train': examples, 'test': examples[:2]})
  stored = list(tfds.data_source('tiny', split='train', data_dir=tmp_path, download=False))

  source = jtfds.read('tiny', str(tmp_path))
  np.testing.assert_array_equal(source.train.images, [e['image'] for e in stored])
  np.testing.assert_array_equal(source.train.labels, [e['label'] for e in stored])
  assert source.train.images.shape == (7, 4, 4, 1)
  assert len(source.test.labels) == 2
  assert source.class_names == ('0', '1', '2')


def test_the_default_directory_is_that_of_tfds(tmp_path, monkeypatch):
  colour_set(tmp_path / 'sets')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'sets'))
  assert jtfds.is_prepared('tiny')
  assert len(jtfds.read('tiny').train.labels) == 23

  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'sets').rename(tmp_path / 'tensorflow_datasets')
  assert jtfds.is_prepared('tiny')


def test_the_newest_complete_version_is_read(tmp_path):
  folder, _ = colour_set(tmp_path)
  other, _ = colour_set(tmp_path / 'other', n=(3, 2))
  shutil.copytree(other, tmp_path / 'tiny' / '10.0.0')  # newer than 1.0.0, and than 9.0.0
  shutil.copytree(folder, tmp_path / 'tiny' / '9.0.0')
  shutil.copytree(folder, tmp_path / 'tiny' / 'incomplete.ABCDEF_11.0.0')
  assert len(jtfds.read('tiny', str(tmp_path)).train.labels) == 3


def test_an_interrupted_preparation_is_not_prepared(tmp_path):
  folder, _ = colour_set(tmp_path)
  assert jtfds.is_prepared('tiny', str(tmp_path))
  folder.rename(folder.with_name('incomplete.ABCDEF_1.0.0'))
  assert not jtfds.is_prepared('tiny', str(tmp_path))


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
  colour_set(tmp_path)
  assert f'did you mean {meant!r}?' in complaint(name, str(tmp_path))


def test_another_format_says_so(tmp_path):
  folder, _ = colour_set(tmp_path)
  info = json.loads((folder / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  assert not jtfds.is_prepared('tiny', str(tmp_path))
  line = complaint('tiny', str(tmp_path))
  assert f'{folder} is in tfrecord format' in line
  assert "download_and_prepare(file_format='array_record')" in line

  (tmp_path / 'tiny').rename(tmp_path / 'cifar10')
  assert f'run `jaxres prepare cifar10 --data_dir {tmp_path}`' in complaint('cifar10', tmp_path)


def test_no_array_record_points_to_npz(tmp_path, monkeypatch):
  colour_set(tmp_path)
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


def test_images_of_two_sizes_are_refused(tmp_path):
  features = {
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.ClassLabel(num_classes=2),
  }
  example = lambda side: {'image': png(np.zeros((side, side, 3), np.uint8)), 'label': 1}
  write(tmp_path, features, {'train': [example(4)], 'test': [example(4), example(3)]})
  line = complaint('tiny', str(tmp_path))
  assert 'test, example 1: ' in line
  assert '(4, 4, 3)' in line
  assert '(3, 3, 3)' in line


def test_a_label_out_of_range_names_its_example(tmp_path):
  folder, expected = colour_set(tmp_path)
  features = (folder / 'features.json').read_text()
  (folder / 'features.json').write_text(features.replace('"4"', '"3"'))
  (folder / 'label.labels.txt').unlink()
  at = int(np.flatnonzero(expected['train'][1] == 3)[0])
  line = complaint('tiny', str(tmp_path))
  assert f'train, example train_{at:05d}: label 3, expected 0 to 2' in line


def test_a_set_of_another_kind_is_refused(tmp_path):
  write(tmp_path, {'text': tfds.features.Text()}, {'train': [{'text': 'a'}]})
  assert 'found text: Text' in complaint('tiny', str(tmp_path))


def test_a_set_without_a_test_split_is_refused(tmp_path):
  features = {
    'image': tfds.features.Image(shape=(6, 5, 3)),
    'label': tfds.features.ClassLabel(num_classes=2),
  }
  write(tmp_path, features, {'train': [{'image': png(np.zeros((6, 5, 3), np.uint8)), 'label': 0}]})
  assert "no split 'test'; its splits: train" in complaint('tiny', str(tmp_path))


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
def test_a_damaged_set_is_never_read(tmp_path, damage):
  folder, _ = colour_set(tmp_path)
  (path,) = folder.glob('*test.array_record*')
  DAMAGE[damage](path)
  line = complaint('tiny', str(tmp_path))
  assert 'cannot read ' in line
  assert f'remove {folder}' in line or 'remove that folder' in line


@pytest.fixture(scope='module')
def cifar10():
  if 'JAXRES_TFDS_DIR' not in os.environ:
    pytest.skip('needs CIFAR-10: set JAXRES_TFDS_DIR to a directory of TFDS sets')
  return jtfds.read('cifar10', os.environ['JAXRES_TFDS_DIR'])


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
