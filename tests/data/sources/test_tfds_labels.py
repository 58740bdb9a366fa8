import os

import numpy as np
import pytest

from jaxres.data.sources import tfds_labels
from tests.data.sets import examples, features, write


class Source:
  """A TFDS data source that counts what is read."""

  def __init__(self, examples):
    self.examples = examples
    self.reads = 0

  def __len__(self):
    return len(self.examples)

  def __getitems__(self, index):
    self.reads += len(index)
    return [self.examples[at] for at in index]


@pytest.fixture
def folder(tmp_path):
  return write(tmp_path, features(ids=True), {'train': examples(6)})


def source(size: int = 700) -> Source:
  rng = np.random.default_rng(0)
  ids = rng.permutation(size)
  return Source([{'id': f'{i:05d}'.encode(), 'label': np.int64(i % 7), 'image': b''} for i in ids])


def test_labels_are_read_once_and_kept(folder):
  given = source()
  actual = tfds_labels.read(folder, 'train', given)
  assert given.reads == 700
  assert actual.labels.dtype == np.int32
  np.testing.assert_array_equal(actual.labels, [e['label'] for e in given.examples])
  np.testing.assert_array_equal(actual.labels[actual.order], np.arange(700) % 7)  # in the order of the ids
  again = tfds_labels.read(folder, 'train', given)
  assert given.reads == 700
  for ours, theirs in zip(again, actual, strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype


def test_another_split_folder_or_writing_is_another_file(folder, tmp_path):
  first = tfds_labels.cache_file(folder, 'train')
  assert first == tfds_labels.cache_file(folder / '..' / '1.0.0', 'train')
  assert str(first).startswith(os.environ['XDG_CACHE_HOME'])
  info = folder / 'dataset_info.json'
  others = [tfds_labels.cache_file(folder, 'test')]
  info.write_text(info.read_text() + ' ')
  others.append(tfds_labels.cache_file(folder, 'train'))
  os.utime(info, ns=(0, 0))
  others.append(tfds_labels.cache_file(folder, 'train'))
  others.append(tfds_labels.cache_file(folder.rename(tmp_path / '1.0.0'), 'train'))
  assert len({first, *others}) == 5


@pytest.mark.parametrize('damage', ['empty', 'truncated', 'other file', 'too few', 'other order', 'other dtype'])
def test_a_damaged_file_is_written_again(folder, damage):
  given = source()
  expected = tfds_labels.read(folder, 'train', given)
  file = tfds_labels.cache_file(folder, 'train')
  content = file.read_bytes()
  if damage in ('empty', 'truncated', 'other file'):
    file.write_bytes({'empty': b'', 'truncated': content[:-50], 'other file': b'[1, 2]'}[damage])
  else:
    kept = {'labels': expected.labels, 'order': expected.order}
    kept |= {
      'too few': {'labels': expected.labels[1:]},
      'other order': {'order': np.zeros(700, np.int64)},
      'other dtype': {'labels': expected.labels * 0.5},
    }[damage]
    np.savez(file, **kept)
  np.testing.assert_array_equal(tfds_labels.read(folder, 'train', given).labels, expected.labels)
  assert given.reads == 1400
  tfds_labels.read(folder, 'train', given)
  assert given.reads == 1400
  assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_where_nothing_can_be_kept_all_is_read_again(folder, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))  # nobody, not even root, makes a folder in it
  given = source()
  for reads in (700, 1400):
    tfds_labels.read(folder, 'train', given)
    assert given.reads == reads


def test_empty_records_are_an_error_and_not_kept(folder):
  given = source()
  given.examples[300] = {'id': None, 'label': None, 'image': None}
  with pytest.raises(OSError, match='examples are empty'):
    tfds_labels.read(folder, 'train', given)
  assert not tfds_labels.cache_file(folder, 'train').exists()


def test_ids_that_are_paths_are_in_the_order_of_a_walk():
  walk = [b'cat/1', b'cat/10', b'cat/2', b'cat-x/0', b'dog/0']  # sorted as text, cat-x comes before cat
  assert sorted(walk) != walk
  given = [walk[i] for i in (3, 0, 4, 2, 1)]
  assert [given[i] for i in tfds_labels.by_id(given)] == walk
  assert tfds_labels.by_id([3, 1, 2]).tolist() == [1, 2, 0]
  assert tfds_labels.by_id([None] * 3).tolist() == [0, 1, 2]
