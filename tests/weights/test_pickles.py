"""Hostile files: each is refused by name, and nothing of it is run."""

import contextlib
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from jaxres import weights
from jaxres.errors import InputError
from jaxres.weights import pickles, reader
from tests.weights.conftest import make_state

HEADER = b''.join(
  pickle.dumps(value, 2) for value in (reader.LEGACY_MAGIC, reader.LEGACY_PROTOCOL, {'little_endian': True})
)


class Call:
  """Pickled as a call of a function."""

  def __init__(self, function, *arguments, state=None):
    self.function, self.arguments, self.state = function, arguments, state

  def __reduce__(self):
    return (self.function, self.arguments) if self.state is None else (self.function, self.arguments, self.state)


def text(value: str) -> bytes:
  return b'X' + struct.pack('<I', len(value)) + value.encode()


def payloads(marker: pathlib.Path) -> dict[str, tuple[bytes, str]]:
  """Return pickles that would make the file ``marker``, and the name that each must be refused by."""
  command = f'touch {marker}'
  python = f'open({str(marker)!r}, "w").close()'
  system = pickle.dumps(Call(os.system, command), 2)
  nested = Call(os.system, command)
  return {
    'os.system': (system, 'posix.system'),
    'eval': (pickle.dumps(Call(eval, python), 2), '__builtin__.eval'),
    'exec': (pickle.dumps(Call(exec, python), 4), 'builtins.exec'),
    'nested in the arguments of a call': (pickle.dumps(Call(list, [nested]), 2), '__builtin__.list'),
    'nested in a state dict': (pickle.dumps({'state_dict': {'conv1.weight': nested}}, 2), 'posix.system'),
    'a key': (pickle.dumps({nested: 1}, 2), 'posix.system'),
    'getattr': (
      b'\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n('
      + text('posix')
      + b'tR'
      + text('system')
      + b'tR('
      + text(command)
      + b'tR.',
      'builtins.getattr',
    ),
    'STACK_GLOBAL': (pickle.dumps(Call(os.system, command), 4), 'posix.system'),
    'STACK_GLOBAL of a dotted name': (
      b'\x80\x04' + text('collections') + text('OrderedDict.fromkeys') + b'\x93' + text('ab') + b'\x85R.',
      'collections.OrderedDict.fromkeys',
    ),
    'INST': (b'(' + text(command) + b'iposix\nsystem\n.', 'posix.system'),
    'OBJ': (b'(cposix\nsystem\n' + text(command) + b'o.', 'posix.system'),
    'BUILD with __setstate__': (
      b'\x80\x02ccollections\nOrderedDict\n)R}' + text('__setstate__') + b'cposix\nsystem\nsb' + text(command) + b'b.',
      'posix.system',
    ),
    'NEWOBJ': (b'\x80\x02ccollections\nOrderedDict\n)\x81.', 'opcode NEWOBJ'),
    'a persistent id as text': (b'Pstorage\n.', 'opcode PERSID'),
    'the extension registry': (b'\x80\x02\x82\x01)R.', 'opcode EXT1'),
    'a module': (pickle.dumps(Call(__import__, 'os'), 2), '__builtin__.__import__'),
    'a tensor class that runs code': (
      b'\x80\x02ctorch._utils\n_rebuild_tensor_v3\n)R.',
      'torch._utils._rebuild_tensor_v3',
    ),
    'numpy': (pickle.dumps({'best': np.float64(1)}, 2), 'numpy'),
  }


EXECUTING = (
  'os.system', 'eval', 'exec', 'nested in the arguments of a call', 'nested in a state dict', 'a key', 'getattr',
  'STACK_GLOBAL', 'INST', 'OBJ',
)  # fmt: skip


def write_zip(path: pathlib.Path, entries: dict[str, bytes], **options) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', **options) as archive:
    for name, content in entries.items():
      archive.writestr(name, content)
  return path


def complaint(path: pathlib.Path) -> str:
  with pytest.raises(InputError) as caught:
    weights.read(path)
  line = str(caught.value)
  assert '\n' not in line
  assert str(path) in line
  assert len(line) < 700
  return line


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


def entry(path: pathlib.Path) -> dict[str, bytes]:
  with zipfile.ZipFile(path) as archive:
    return {name: archive.read(name) for name in archive.namelist()}


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


def tensor(shape, strides, offset=0, size=4, key='0', kind='FloatStorage') -> bytes:
  """Return a pickle of a state dict of one tensor."""
  numbers = lambda values: b'(' + b''.join(b'\x8a\x08' + struct.pack('<q', v) for v in values) + b't'
  storage = (
    b'(' + text('storage') + f'ctorch\n{kind}\n'.encode() + text(key) + text('cpu') + b'K' + bytes([size]) + b'tQ'
  )
  body = b'(' + storage + numbers([offset])[1:-1] + numbers(shape) + numbers(strides) + b'\x89}tR'
  return b'\x80\x02}' + text('w') + b'ctorch._utils\n_rebuild_tensor_v2\n' + body + b's.'


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
