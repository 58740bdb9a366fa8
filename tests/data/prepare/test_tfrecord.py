import json
import os
import struct
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorboardX import crc32c as reference
from tensorboardX.record_writer import RecordWriter

from jaxres import cli, data
from jaxres.data.prepare import tfrecord as prepare_tfrecord
from jaxres.errors import InputError
from tests.data.sets import examples, features, write


def write_tfrecord(path, records) -> None:
  writer = RecordWriter(os.fspath(path))
  for record in records:
    writer.write(record)
  writer.close()


def tfrecord_set(root, **options):
  """Write a set of two splits in tfrecord format, with tensorboardX; return its folder and that of the original."""
  given = {'train': examples(20), 'test': examples(7)}
  original = write(root / 'original', features(ids=True), given, shards=3, **options)
  folder = root / 'tf' / original.relative_to(root / 'original')
  folder.mkdir(parents=True)
  info = json.loads((original / 'dataset_info.json').read_text())
  for file in original.iterdir():
    if 'array_record' not in file.name:
      (folder / file.name).write_bytes(file.read_bytes())
  for split in info['splits']:
    source = tfds.builder_from_directory(original).as_data_source(
      split=split['name'], deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    ends = np.cumsum([int(n) for n in split['shardLengths']])
    for k, end in enumerate(ends):
      records = [source[i] for i in range(ends[k - 1] if k else 0, end)]
      write_tfrecord(folder / f'tiny-{split["name"]}.tfrecord-{k:05d}-of-{len(ends):05d}', records)
  (folder / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
  return folder, original


def complaint(function, *args) -> str:
  with pytest.raises(InputError) as caught:
    function(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize('size', [0, 1, 8, 300])
def test_checksums_are_those_of_others(size):
  content = np.random.default_rng(size).bytes(size)
  assert prepare_tfrecord.crc32c(content) == reference._crc32c(content)
  assert prepare_tfrecord.crc32c(b'123456789') == 0xE3069283  # the check value of CRC-32C


@pytest.mark.parametrize('config', [None, 'big'])
def test_every_record_is_copied(tmp_path, config, monkeypatch):
  folder, original = tfrecord_set(tmp_path, config=config)
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  made = prepare_tfrecord.convert(str(folder), str(tmp_path / 'new'))
  assert made == tmp_path / 'new' / original.relative_to(tmp_path / 'original')
  for split in ('train', 'test'):
    ours, theirs = (
      tfds.builder_from_directory(place).as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
      )
      for place in (made, original)
    )
    assert list(ours) == list(theirs)
    assert len(ours) > 0
  assert {p.name for p in made.iterdir()} == {p.name for p in original.iterdir()}
  assert [p.name for p in made.parent.iterdir()] == ['1.0.0']
  name = 'tiny' + (f'/{config}' if config else '')
  loaded = [data.load(name, data_dir=str(tmp_path / d), image_size=8, batch_size=4) for d in ('new', 'original')]
  np.testing.assert_array_equal(*(dataset.train.device_data['image'] for dataset in loaded))
  np.testing.assert_array_equal(*(dataset.test.device_data['label'] for dataset in loaded))


def test_the_error_names_the_command_and_the_command_prints_one_that_trains(tmp_path, capsys):
  folder, _ = tfrecord_set(tmp_path)
  load = lambda where: data.load('tiny', data_dir=str(tmp_path / where), image_size=8)
  line = complaint(load, 'tf')
  assert f'run `jaxres prepare tfrecord {folder} --data_dir ELSEWHERE`' in line
  words = line.split('`')[1].replace('ELSEWHERE', str(tmp_path / 'new')).split()[1:]
  cli.main(words)
  assert load('new').train.size == 20
  out = capsys.readouterr().out
  flags = f'--config.data.name=tiny --config.data.data_dir={tmp_path}/new --config.data.image_size=64'
  assert out == (
    f'tiny is in {tmp_path}/new/tiny/1.0.0\n'
    f'train on it: python main.py --config configs/digits.py --workdir runs/tiny {flags}\n'
  )


def shard(folder):
  return folder / 'tiny-train.tfrecord-00001-of-00003'


def cut(path, size):
  os.truncate(path, path.stat().st_size + size if size < 0 else size)


def flip(path, at):
  content = bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)


def first_record(path):
  return struct.unpack('<Q', path.read_bytes()[:8])[0] + 16


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda p: cut(p, -1), 'it is truncated: record 5 ends after the end of the file'),
    (lambda p: cut(p, first_record(p) + 5), 'it is truncated: record 1 ends'),
    (lambda p: cut(p, first_record(p) + 13), 'it is truncated: record 1 ends'),
    (lambda p: cut(p, first_record(p)), 'expected 6 records, as dataset_info.json says, found 1'),
    (lambda p: cut(p, 0), 'expected 6 records, as dataset_info.json says, found 0'),
    (lambda p: flip(p, first_record(p) + 1), 'record 1 is damaged: the checksum of its length is wrong'),
    (lambda p: flip(p, 9), 'record 0 is damaged: the checksum of its length is wrong'),
    (lambda p: p.unlink(), '1.0.0: it has no file tiny-train.tfrecord-00001-of-00003'),
  ],
)
def test_a_damaged_file_is_named_and_nothing_is_left(tmp_path, damage, message):
  folder, _ = tfrecord_set(tmp_path)
  damage(shard(folder))
  line = complaint(prepare_tfrecord.convert, str(folder), str(tmp_path / 'new'))
  assert message in line
  assert shard(folder).name in line
  assert [p for p in (tmp_path / 'new').rglob('*') if p.is_file()] == []
  assert not (tmp_path / 'new/tiny/1.0.0').exists()


def test_data_is_checked_where_a_fast_checksum_is_installed(tmp_path, monkeypatch):
  path = tmp_path / 'x.tfrecord'
  write_tfrecord(path, [b'one', b'two'])
  assert list(prepare_tfrecord.read(path)) == [b'one', b'two']
  flip(path, path.read_bytes().index(b'two'))
  monkeypatch.setattr(prepare_tfrecord, 'fast_crc32c', lambda: reference._crc32c)
  with pytest.raises(InputError, match=r'x.tfrecord: record 1 is damaged: the checksum of its data is wrong'):
    list(prepare_tfrecord.read(path))
  write_tfrecord(path, [b'one', b'two'])
  assert list(prepare_tfrecord.read(path)) == [b'one', b'two']


def test_fast_checksums_are_detected(monkeypatch):
  for name in ('google_crc32c', 'crc32c'):
    monkeypatch.setitem(sys.modules, name, None)
  assert prepare_tfrecord.fast_crc32c() is None
  module = type(sys)('crc32c')
  module.crc32c = reference._crc32c
  monkeypatch.setitem(sys.modules, 'crc32c', module)
  assert prepare_tfrecord.fast_crc32c() is reference._crc32c


def test_wrong_places_are_explained(tmp_path, monkeypatch):
  folder, original = tfrecord_set(tmp_path)
  assert 'no dataset_info.json; expected the folder of a version' in complaint(
    prepare_tfrecord.convert, str(tmp_path), None
  )
  assert f'{original}: it is in array_record format; expected tfrecord' in complaint(
    prepare_tfrecord.convert, str(original), None
  )
  line = complaint(prepare_tfrecord.convert, str(folder), str(tmp_path / 'tf'))
  assert f'{folder}: it lies in {tmp_path}/tf itself; give another place with --data_dir' in line
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tf'))
  assert 'itself; give another place' in complaint(prepare_tfrecord.convert, str(folder))
  assert '1.0.0: it exists; move it away' in complaint(
    prepare_tfrecord.convert, str(folder), str(tmp_path / 'original')
  )
  (tmp_path / 'file').write_text('')
  line = complaint(prepare_tfrecord.convert, str(folder), str(tmp_path / 'file'))
  assert f'{tmp_path}/file/tiny/1.0.0: cannot write: ' in line
  assert (folder / 'dataset_info.json').exists()
  monkeypatch.setitem(sys.modules, 'array_record', None)
  assert 'array_record is not installed' in complaint(prepare_tfrecord.convert, str(folder), str(tmp_path / 'new'))
