"""Data from Python's memory: every form of the same examples is the same data set, and trains the same network."""

import numpy as np
import pytest

from jaxres import data
from jaxres.analysis.loaded import load
from jaxres.data.sources import arrays, memory
from jaxres.errors import InputError
from jaxres.train import loop
from tests.helpers import CLASS_NAMES, make_arrays, merge

CONTENT = make_arrays()
SPLITS = {split: (CONTENT[f'{split}_x'], CONTENT[f'{split}_y']) for split in ('train', 'test')}


class Batches:
  """What gives batches each time, as a DataLoader does."""

  def __init__(self, images, labels, size=10):
    self.images, self.labels, self.size = images, labels, size

  def __iter__(self):
    for start in range(0, len(self.labels), self.size):
      yield self.images[start : start + self.size], self.labels[start : start + self.size]


class Numpy:
  """What gives examples as a ``tf.data.Dataset`` does: by ``as_numpy_iterator``."""

  def __init__(self, images, labels, cardinality=None):
    self.images, self.labels, self.count = images, labels, cardinality

  def cardinality(self):
    return np.int64(len(self.labels) if self.count is None else self.count)

  def as_numpy_iterator(self):
    return ({'image': x, 'label': y} for x, y in zip(self.images, self.labels, strict=True))


def floats(images: np.ndarray) -> np.ndarray:
  return images.astype(np.float32) / 255


FORMS = {
  'arrays': CONTENT,
  'pairs': SPLITS,
  'lists': {split: [[*x], y.tolist()] for split, (x, y) in SPLITS.items()},
  'examples': {split: [*zip(x, y, strict=True)] for split, (x, y) in SPLITS.items()},
  'batches': {split: Batches(*pair) for split, pair in SPLITS.items()},
  'floats': {split: Batches(floats(x), y) for split, (x, y) in SPLITS.items()},
  'tf.data': {split: Numpy(*pair) for split, pair in SPLITS.items()},
  'a dict of images and labels': {split: {'image': x, 'label': y} for split, (x, y) in SPLITS.items()},
}


@pytest.mark.parametrize('given', FORMS.values(), ids=FORMS)
def test_every_form_is_the_data_set_of_the_file(given, npz) -> None:
  source, expected = memory.read(given), arrays.read_npz(npz())
  for split in ('train', 'test'):
    for a, b in zip(getattr(source, split), getattr(expected, split), strict=True):
      np.testing.assert_array_equal(a, b)
      assert a.dtype == b.dtype
  assert source.class_names == expected.class_names


def test_a_loader_of_torch() -> None:
  torch = pytest.importorskip('torch')
  images, labels = SPLITS['train']
  tensors = torch.utils.data.TensorDataset(
    torch.from_numpy(floats(images)).permute(0, 3, 1, 2), torch.from_numpy(labels)
  )
  for given in (torch.utils.data.DataLoader(tensors, batch_size=7), tensors):
    source = memory.read({'train': given, 'test': SPLITS['test'], 'class_names': CLASS_NAMES})
    np.testing.assert_array_equal(source.train.images, images)
    np.testing.assert_array_equal(source.train.labels, labels)
    assert source.class_names == tuple(CLASS_NAMES)


def test_a_fifth_is_tested_where_there_is_no_test_split() -> None:
  source = memory.read(SPLITS['train'])
  assert (len(source.train.labels), len(source.test.labels)) == (77, 19)
  assert memory.read(SPLITS['train'], tested='none').test is None
  with_val = {'train': SPLITS['train'], 'val': SPLITS['test']}
  assert len(memory.read(with_val, tested='val').test.labels) == 40
  dataset = data.load('arrays', examples=SPLITS['train'], batch_size=8, val=0.25)
  assert (dataset.train.size, dataset.val.size, dataset.test.size) == (58, 19, 19)


def test_training_goes_on_with_equal_data_and_no_other(config, tmp_path, npz, capsys) -> None:
  file = loop.train_and_evaluate(merge(config, train={'epochs': 2}), tmp_path / 'file')
  config = merge(config, data={'name': 'cifar10', 'path': None})
  first = loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run', data=FORMS['batches'])
  assert first['train/loss'] != file['train/loss']
  other = {**CONTENT, 'test_x': CONTENT['test_x'] // 2}
  with pytest.raises(InputError, match='holds a run on other data: splits was'):
    loop.train_and_evaluate(merge(config, train={'epochs': 2}), tmp_path / 'run', data=other)
  end = loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run', data=FORMS['arrays'])
  assert end['test/top1'] == first['test/top1']
  complete = loop.train_and_evaluate(merge(config, train={'epochs': 2}), tmp_path / 'again', data=FORMS['tf.data'])
  same = lambda row: {name: value for name, value in row.items() if 'images_per_s' not in name}
  assert same(complete) == same(file)
  network = load(tmp_path / 'again')
  assert network.evaluate(SPLITS['test']).top1 == complete['test/top1']
  with pytest.raises(InputError, match=r'a run on arrays in memory needs them again: jaxres.load\(RUN\).evaluate'):
    network.evaluate()


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ((pair for pair in [SPLITS['train']]), r"data\['train'\]: a generator can be read only once"),
    (iter([SPLITS['train']]), 'a list_iterator can be read only once'),
    ({'train': zip(*SPLITS['train'], strict=True)}, r"data\['train'\]: a zip can be read only once"),
    ('photos', "data\\['train'\\]: expected a dict of arrays .*, found 'photos'; the section data of the config"),
    (3, 'found a int'),
    ([], r"data\['train'\]: no examples there"),
    ({}, 'found a dict of nothing'),
    ({'tran': SPLITS['train']}, "data: unknown key 'tran'; did you mean 'train'?"),
    ({'test': SPLITS['test']}, "found a dict of 'test'"),
    ({'train_x': CONTENT['train_x']}, 'data: no train_y; give train_x and train_y'),
    ([(1, 2, 3)], r"data\['train'\], element 0: expected \(image, label\), found a tuple of 3"),
    ([{'pixels': 1, 'label': 2}], 'expected a dict with image and label, found one with pixels, label'),
    (Numpy(*SPLITS['train'], cardinality=-1), 'it has no end; leave out .repeat'),
    ((CONTENT['train_x'].astype(np.float32), CONTENT['train_y']), 'images: expected floats from 0 to 1, found float32'),
    ((CONTENT['train_x'][:, None], CONTENT['train_y']), r'train_x: expected uint8 \[N, H, W, C\]'),
    ((CONTENT['train_x'].astype(np.int32), CONTENT['train_y']), r'found int32 \[96, 8, 8, 3\]; use .astype'),
    ((CONTENT['train_x'], CONTENT['train_y'][:-1]), r'data: train_y: expected integers \[96\], found int64 \[95\]'),
    ((CONTENT['train_x'], np.eye(4)[CONTENT['train_y']]), r'use .argmax\(1\)'),
    ((CONTENT['train_x'], CONTENT['train_y'] * 2), 'no training example has label 1'),
    ([(np.zeros((8, 8, 3), np.uint8), 0), (np.zeros((9, 8, 3), np.uint8), 1)], 'element 1: the image is'),
    ([('x.png', 0)], 'element 0: image: expected an array of numbers, found str'),
  ],
)
def test_other_data_is_one_line_that_names_it(given, message) -> None:
  with pytest.raises(InputError, match=message) as caught:
    memory.read(given)
  assert '\n' not in str(caught.value)
