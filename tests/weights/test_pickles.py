"""Hostile files: each is refused by name, and nothing of it is run."""

import contextlib
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from jaxres import weights
from jaxres.weights import pickles
from tests.weights.files import HEADER, complaint, entry, make_state, payloads, tensor, text, write_zip

EXECUTING = (
  'os.system', 'eval', 'exec', 'nested in the arguments of a call', 'nested in a state dict', 'a key', 'getattr',
  'STACK_GLOBAL', 'INST', 'OBJ',
)  # fmt: skip


@pytest.mark.parametrize('name', payloads(pathlib.Path('m')))
@pytest.mark.parametrize('container', ['zip', 'legacy'])
def test_a_payload_is_refused_by_name_and_never_run(tmp_path, name, container):
  marker, path = tmp_path / 'marker', tmp_path / 'hostile.pth'
  payload, refused = payloads(marker)[name]
  if container == 'zip':
    write_zip(path, {'archive/data.pkl': payload})
  else:
    path.write_bytes(HEADER + payload)
  line = complaint(path)
  assert refused in line
  assert 'nothing of it was run' in line
  assert not marker.exists()


@pytest.mark.parametrize('name', EXECUTING)
def test_the_payloads_are_live(tmp_path, name):
  """They do run where Python's own unpickler reads them: the test above is not vacuous."""
  marker = tmp_path / 'marker'
  payload, _ = payloads(marker)[name]
  with contextlib.suppress(TypeError):  # an exit code is no list
    pickle.loads(payload)
  assert marker.exists()


@pytest.mark.parametrize(
  ('payload', 'expected'),
  [
    (b'\x80\x02}', 'breaks off'),
    (b'\x80\x02X\xff\xff\xff\x7fab.', 'breaks off'),
    (b'\x80\x02r\xff\xff\xff\xff.', 'damaged'),
    (b'\x80\x02h\x05.', 'damaged'),
    (b'\x80\x02t.', 'damaged'),
    (b'\x80\x02])R.', 'what is no function'),
    (b'\x80\x02ctorch\nFloatStorage\n)R.', 'what is no function'),
    (b'\x80\x02' + b')' + b'\x85' * 200_000 + b'K\x01s.', 'damaged'),
    (b'\x80\x02}' + b')' + b'\x85' * 200_000 + b'K\x01s.', 'a dict key of type tuple'),
    (b'\x80\x02' + text('storage') + b'Q.', 'persistent id'),
    (b'\x80\x02\xff', 'no pickle'),
    (b'\x80\x02(NN' + b'e.', 'damaged'),
  ],
)
def test_a_damaged_pickle_is_one_line(tmp_path, payload, expected):
  line = complaint(write_zip(tmp_path / 'x.pth', {'archive/data.pkl': payload}))
  assert expected in line


def test_a_pickle_that_holds_itself_ends(tmp_path):
  (tmp_path / 'x.pth').write_bytes(HEADER + b'\x80\x02]q\x00h\x00a.' + pickle.dumps([], 2))
  assert 'no state dict' in complaint(tmp_path / 'x.pth')


def test_a_large_pickle_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, 'MAX_BYTES', 1000)
  weights.write(tmp_path / 'x.pth', make_state(4))
  assert 'exceeds 1000 bytes' in complaint(tmp_path / 'x.pth')


def test_zip_bombs_are_refused(tmp_path):
  good = tmp_path / 'good.pth'
  weights.write(good, make_state(4))
  entries = entry(good)
  bomb = write_zip(
    tmp_path / 'bomb.pth', entries | {'archive/data/0': b'\0' * (64 << 20)}, compression=zipfile.ZIP_DEFLATED
  )
  assert bomb.stat().st_size < 1 << 20
  assert 'is compressed' in complaint(bomb)

  raw = good.read_bytes()
  huge = struct.pack('<I', 0xFFFFFF00)
  at = raw.rindex(b'PK\x01\x02')  # the last entry of the directory: claims 4 GB
  (tmp_path / 'claims.pth').write_bytes(raw[: at + 20] + huge * 2 + raw[at + 28 :])
  assert 'does not lie in the file' in complaint(tmp_path / 'claims.pth')

  for name in ('../../etc/passwd', '/etc/passwd', 'archive/../x'):
    assert f'an entry is called {name!r}' in complaint(write_zip(tmp_path / 'x.pth', entries | {name: b''}))


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (dict(shape=[5], strides=[1]), 'reaches beyond'),
    (dict(shape=[2], strides=[4]), 'reaches beyond'),
    (dict(shape=[4], strides=[1], offset=1), 'reaches beyond'),
    (dict(shape=[4], strides=[1], offset=-1), 'reaches beyond'),
    (dict(shape=[-1], strides=[1]), 'reaches beyond'),
    (dict(shape=[4], strides=[-1]), 'reaches beyond'),
    (dict(shape=[1 << 40], strides=[0]), 'reaches beyond'),  # 4 TB out of one number
    (dict(shape=[2, 2], strides=[1]), 'reaches beyond'),
    (dict(shape=[1] * 9, strides=[1] * 9), 'reaches beyond'),
    (dict(shape=[4], strides=[1], size=5), 'has 16 bytes, not 5'),
    (dict(shape=[4], strides=[1], key='../0'), 'is missing'),
    (dict(shape=[4], strides=[1], kind='CharStorage'), 'w is int8'),
    (dict(shape=[4], strides=[1], kind='DoubleStorage'), 'has 16 bytes, not 4 float64'),
    (dict(shape=[4], strides=[1], kind='LongStorage'), 'w is int64'),
  ],
)
def test_a_tensor_stays_in_its_storage(tmp_path, arguments, expected):
  content = np.arange(4, dtype='<f4').tobytes()
  good = write_zip(tmp_path / 'good.pth', {'archive/data.pkl': tensor([2, 2], [1, 2]), 'archive/data/0': content})
  np.testing.assert_array_equal(weights.read(good)['w'], [[0, 2], [1, 3]])
  bad = write_zip(tmp_path / 'bad.pth', {'archive/data.pkl': tensor(**arguments), 'archive/data/0': content})
  assert expected in complaint(bad)


def test_many_views_of_one_storage_are_refused(tmp_path):
  one = tensor([255], [1], size=255)
  body = one[3:-2]  # name and tensor
  many = b'\x80\x02}' + b''.join(text(f'w{i}') + body[len(text('w')) :] + b's' for i in range(200)) + b'.'
  content = np.zeros(255, '<f4').tobytes()
  assert len(weights.read(write_zip(tmp_path / 'x.pth', {'archive/data.pkl': one, 'archive/data/0': content}))) == 1
  assert 'many times' in complaint(write_zip(tmp_path / 'x.pth', {'archive/data.pkl': many, 'archive/data/0': content}))
