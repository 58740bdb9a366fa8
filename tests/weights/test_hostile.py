"""Files whose work or memory would not be bounded by their size: each is one short line, soon, in little memory."""

import contextlib
import gc
import os
import pickle
import random
import re
import signal
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxres import weights
from jaxres.errors import InputError
from jaxres.weights import pickles, zipped
from tests.weights.files import HEADER, entry, make_state, safetensors, tensor, text, write_zip

SECONDS, SHORT = 10, 300  # a wall time that a crowded machine keeps; each case takes up to about one second alone
MEMORY = 32 << 20  # bytes, and TIMES the size of the file
TIMES = 100


class TooSlowError(BaseException):
  """Raised by the alarm; no handler of errors in the library catches it."""


@contextlib.contextmanager
def alarm(seconds: float):
  def ring(*_):
    raise TooSlowError

  gc.freeze()  # what the tests before have left is no work of the reader, and slows each collection
  before = signal.signal(signal.SIGALRM, ring)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.unfreeze()


def attempt(path):
  """Read and recognize the file as a tool does; return what was read, or the complaint."""
  try:
    state = weights.read(path)
    weights.recognize(state, str(path))
    weights.batches(state)
    return state
  except InputError as error:
    line = str(error)
    assert '\n' not in line
    assert len(line.replace(str(path), '')) < SHORT, line
    assert line.isprintable(), line
    return line


def refuse(path, trace: bool = True) -> str:
  """Return the complaint about a file, after checking its length, the time and the memory that it took."""
  if trace:
    tracemalloc.start()
  try:
    with alarm(SECONDS * (4 if trace else 1)):  # tracing is slow
      line = attempt(path)
    if trace:
      _, peak = tracemalloc.get_traced_memory()
      assert peak < MEMORY + TIMES * path.stat().st_size, f'{peak >> 20} MB'
  finally:
    tracemalloc.stop()
  assert isinstance(line, str), 'it was read'
  return line


def list_of(size: int) -> bytes:
  return b'](' + b'K\x01' * size + b'e'


def encode_name(name: str) -> bytes:
  """Return a pickle of a state dict of one tensor called ``name``."""
  return tensor([2, 2], [2, 1]).replace(text('w'), text(name), 1)


DOUBLED = b'(' + b'K\x01K\x01tq\x00' + b'0(h\x00h\x00tq\x00' * 40  # 2 ** 40 numbers for who walks it
PAIRS = b''.join(b'(J' + struct.pack('<i', i) + b'K\x02t' for i in range(10_000))
CALLED = b'\x80\x02]q\x00(' + PAIRS + b'e(' + b'ccollections\nOrderedDict\n(h\x00tR' * 2000 + b't.'
MANY = b'\x80\x02(' + b'K\x01' * 100_000 + b'tq\x00'
REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n'
STORAGE = b'(' + text('storage') + b'ctorch\nFloatStorage\n' + text('0') + text('cpu') + b'K\x04tQ'
PICKLES = {
  'a doubled tuple as the name of a global': (b'\x80\x04' + DOUBLED + text('x') + b'\x93.', 'a tuple.x'),
  'a doubled tuple as a key': (b'\x80\x02}' + DOUBLED + b'Ns.', 'a dict key of type tuple'),
  'a doubled tuple as a state dict': (b'\x80\x02' + DOUBLED + b'.', 'found a tuple'),
  'a doubled tuple in a state dict': (encode_name('w')[:-1] + text('v') + DOUBLED + b's.', 'v is no tensor'),
  'a doubled tuple as a persistent id': (b'\x80\x02' + DOUBLED + b'Q.', 'persistent id'),
  'a doubled tuple as arguments': (b'\x80\x02' + REBUILD + DOUBLED + b'R.', 'damaged'),
  'a doubled tuple as a shape': (
    b'\x80\x02' + REBUILD + b'(' + STORAGE + b'K\x00' + DOUBLED + b'h\x00\x89NtR.', 'arguments of a tensor',
  ),
  'nested tuples as the name of a global': (
    b'\x80\x04' + b')' + b'\x85' * 50_000 + text('x') + b'\x93.', 'a tuple.x',
  ),
  'nested tuples as a value': (
    encode_name('w')[:-1] + text('v') + b')' + b'\x85' * 50_000 + b's.', 'v is no tensor but a tuple',
  ),
  'nested lists': (b'\x80\x02' + b']' * 50_000 + b'a' * 49_999 + b'.', 'found a list'),
  'a list given to many calls': (CALLED, 'makes more than it holds'),
  'a call of many arguments': (MANY + b'0' + (REBUILD + b'h\x00R0') * 200 + b'N.', 'a call with 100000 arguments'),
  'a shape of many numbers': (
    MANY + b'0' + REBUILD + b'(' + STORAGE + b'K\x00h\x00h\x00\x89NtR.', 'a tensor of 100000 dimensions',
  ),
  'a pair of many numbers': (MANY + b'0ccollections\nOrderedDict\n(](h\x00etR.', 'makes more|no pairs'),
  'open marks': (b'\x80\x02' + b'(' * 5_000_000 + b'.', 'nested more than'),
  'many steps': (b'\x80\x02' + b'N0' * 2_500_000 + b'N.', 'more than 1,000,000 steps'),
  'empty dicts': (b'\x80\x02' + b'}' * 3_000_000 + b'.', 'more than 1,000,000 steps'),
  'keys of one hash': (
    b'\x80\x02}(' + b''.join(
      b'\x8a\x0b' + (i * ((1 << 61) - 1)).to_bytes(11, 'little') + b'N' for i in range(1, 50_000)
    ) + b'u.', 'a dict key that is no small number',
  ),
  'an endless line': (b'\x80\x02c' + b'x' * 1_000_000, 'breaks off'),
  'a string longer than the file': (b'\x80\x02\x8d' + struct.pack('<Q', 1 << 62) + b'.', 'breaks off'),
  'a doubled tuple as a state to build': (b'\x80\x02' + DOUBLED + b'b.', 'damaged|expected a dict'),
  'a long name': (encode_name('x' * 140_000 + '.layer1.0.conv1.weight'), 'of 140,022 characters'),
  'a name of many words': (encode_name('x.' * 70_000 + 'layer1.0.conv1.weight'), 'of 140,021 characters'),
  'a name of escapes': (encode_name('\x1b[2J.weight'), r'\?\[2J\.weight'),
  'a stage of a large number': (encode_name('layer300000000.0.conv1.weight'), 'no ResNet'),
  'a stage of a large number beside others': (
    tensor([2, 2], [2, 1])[:-2].replace(text('w'), text('layer1.0.conv1.weight'), 1) + b's'
    + encode_name('layer9999.0.conv1.weight')[3:], 'no ResNet',
  ),
  'a stage of a number of many digits': (encode_name(f'layer{"9" * 400}.0.conv1.weight'), 'no ResNet'),
  'a block of a large number': (encode_name('layer1.300000000.conv1.weight'), 'no ResNet'),
  'a child of a large number': (encode_name('99.0.conv1.weight'), 'no ResNet'),
  'no numbers of a large shape': (tensor([0, 1 << 62], [1, 1]), 'reaches beyond'),
  'no numbers of two large sides': (tensor([1 << 62, 0, 1 << 62], [1, 1, 1]), 'reaches beyond'),
  'a shape whose product overflows': (tensor([1 << 32, 1 << 32], [0, 0]), 'reaches beyond'),
  'a shape beyond 64 bits': (
    b'\x80\x02' + REBUILD + b'(' + STORAGE + b'K\x00(\x8a\x0a' + b'\xff' * 9 + b'\x00tq\x01h\x01\x89NtR.',
    'arguments of a tensor',
  ),
  'a storage of a large size': (tensor([1], [1], size=255), 'has 16 bytes, not 255'),
}  # fmt: skip


@pytest.mark.parametrize('container', ['zip', 'legacy'])
@pytest.mark.parametrize('name', PICKLES)
def test_the_work_of_a_pickle_is_bounded(tmp_path, name, container):
  content, expected = PICKLES[name]
  path = tmp_path / 'x.pth'
  if container == 'zip':
    write_zip(path, {'archive/data.pkl': content, 'archive/data/0': bytes(16)})
  else:
    path.write_bytes(HEADER + content + pickle.dumps(['0'], 2) + struct.pack('<q', 4) + bytes(16))
  line = refuse(path, trace=len(content) < 1_500_000)
  if container == 'zip':
    assert re.search(expected, line)


def test_a_number_of_tensors_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, 'MAX_TENSORS', 10)
  weights.write(tmp_path / 'x.pth', make_state(4))
  assert 'more than 10 tensors' in refuse(tmp_path / 'x.pth')
  weights.write(tmp_path / 'x.safetensors', make_state(4))
  assert 'a state dict of 20 entries' in refuse(tmp_path / 'x.safetensors')


def test_views_of_one_wide_storage_cost_what_they_hold(tmp_path):
  """Widening the complete storage for each view of it would take the square of the file."""
  count, size = 2000, 4_000_000
  storage = STORAGE.replace(b'FloatStorage', b'HalfStorage').replace(b'K\x04tQ', b'J' + struct.pack('<i', size) + b'tQ')
  one = REBUILD + b'(h\x00K\x00K\x02\x85J' + struct.pack('<i', size - 1) + b'\x85\x89NtR'
  body = b''.join(text(f'w{i}') + one + b's' for i in range(count))
  content = b'\x80\x02' + storage + b'q\x000}' + body + b'.'
  path = write_zip(tmp_path / 'x.pth', {'archive/data.pkl': content, 'archive/data/0': bytes(2 * size)})
  with alarm(SECONDS):
    state = weights.read(path)
  assert len(state) == count
  assert state['w7'].shape == (2,)


def directory(names: list[str]) -> bytes:
  """Return a zip archive of empty entries."""
  local, central = b'', b''
  for name in names:
    raw = name.encode()
    sizes = struct.pack('<IIIHH', 0, 0, 0, len(raw), 0)
    central += b'PK\x01\x02' + struct.pack('<HHHHHH', 20, 20, 0, 0, 0, 0) + sizes
    central += struct.pack('<HHHII', 0, 0, 0, 0, len(local)) + raw
    local += b'PK\x03\x04' + struct.pack('<HHHHH', 20, 0, 0, 0, 0) + sizes + raw
  end = struct.pack('<HHHHIIH', 0, 0, len(names) & 0xFFFF, len(names) & 0xFFFF, len(central), len(local), 0)
  return local + central + b'PK\x05\x06' + end


def test_zip_archives_are_bounded(tmp_path):
  path = tmp_path / 'x.pth'
  path.write_bytes(directory([f'a/{i}' for i in range(zipped.MAX_ENTRIES + 1)]))
  assert 'more than 20,000 entries' in refuse(path)
  path.write_bytes(directory(['archive/data.pkl', 'archive/data.pkl']))
  assert 'an entry is called' in refuse(path)
  path.write_bytes(directory(['x' * 60_000]))
  assert 'an entry is called' in refuse(path)
  path.write_bytes(directory(['a/\x1b[2Jdata.pkl', 'b']).replace(b'b', b'c', 1))
  refuse(path)


def test_a_zip_directory_that_lies_is_refused(tmp_path):
  good, bad = tmp_path / 'good.pth', tmp_path / 'bad.pth'
  weights.write(good, make_state(4))
  raw = good.read_bytes()
  with zipfile.ZipFile(good) as archive:
    places = {info.filename: info.header_offset for info in archive.infolist()}
  at = raw.index(b'PK\x01\x02')
  central = {}
  for name in places:  # the directory is in the order of the file
    central[name] = at
    at = raw.find(b'PK\x01\x02', at + 4)

  def change_byte(name: str, offset: int, value: bytes) -> str:
    start = central[name] + offset
    bad.write_bytes(raw[:start] + value + raw[start + len(value) :])
    return refuse(bad)

  first, second = 'archive/data/0', 'archive/data/1'
  assert 'does not lie in the file' in change_byte(
    second, 42, struct.pack('<I', places[first])
  )  # another entry's bytes
  assert 'does not lie in the file' in change_byte(second, 42, struct.pack('<I', len(raw) - 10))
  assert 'does not lie in the file' in change_byte(second, 46, b'archive/data/9')  # another name than in its place
  more = struct.pack('<II', *[make_state(4)['conv1.weight'].nbytes + 500] * 2)
  assert 'overlap' in change_byte(first, 20, more)
  zip64 = struct.pack('<II', 0xFFFFFFFF, 0xFFFFFFFF)
  assert 'damaged' in change_byte(second, 20, zip64)
  assert 'encrypted' in change_byte(second, 8, b'\x01\x00')


def test_entries_that_overlap_as_a_quine_are_refused(tmp_path):
  """A thousand entries that share one kilobyte: 1 MB of numbers out of 60 kB."""
  names = [f'a/data/{i:04}' for i in range(200)]
  raw = directory(names)
  at, first = raw.index(b'PK\x01\x02'), raw.index(b'PK\x03\x04')
  assert first == 0
  path = tmp_path / 'x.pth'
  size = struct.pack('<II', 5000, 5000)
  out = bytearray(raw)
  while at >= 0:
    out[at + 20 : at + 28] = size
    at = raw.find(b'PK\x01\x02', at + 4)
  path.write_bytes(bytes(out))
  assert 'overlap' in refuse(path)


F32 = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
HEADERS = {
  'a header beyond the file': ((1 << 62).to_bytes(8, 'little') + b'{}', 'cut off'),
  'a large header': ((100 << 20).to_bytes(8, 'little') + b'{' + b' ' * (5 << 20), 'cut off'),
  'a large header that is there': (safetensors(b'{' + b' ' * (5 << 20) + b'}'), 'a safetensors header of 52'),
  'nested JSON': (safetensors(b'{"w":' + b'[' * 1_000_000), 'cannot be read'),
  'nested objects': (safetensors(b'{"w":' * 200_000), 'cannot be read'),
  'empty lists': (safetensors(b'{"w":[' + b'[],' * 1_300_000 + b'[]]}'), 'cannot be read'),
  'a long number': (safetensors(b'{"w":' + b'9' * 1_000_000 + b'}'), 'cannot be read'),
  'two of one name': (
    safetensors(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{}}', bytes(8)), 'occurs twice',
  ),
  'two of one field': (
    safetensors(b'{"w":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,8]}}', bytes(8)), 'occurs twice',
  ),
  'overlapping offsets': (safetensors({'w': F32, 'v': F32}, bytes(8)), 'damaged'),
  'a hole': (safetensors({'w': F32, 'v': F32 | {'data_offsets': [12, 20]}}, bytes(20)), 'damaged'),
  'offsets in reverse': (safetensors({'w': F32 | {'data_offsets': [8, 0]}}, bytes(8)), 'damaged'),
  'offsets beyond 64 bits': (safetensors({'w': F32 | {'data_offsets': [0, 1 << 80]}}, bytes(8)), 'cannot be read'),
  'no numbers of a large shape': (
    safetensors({'w': {'dtype': 'F32', 'shape': [0, 1 << 62], 'data_offsets': [0, 0]}}), 'beyond the file',
  ),
  'a shape whose product overflows': (
    safetensors({'w': F32 | {'shape': [1 << 32, 1 << 32]}}, bytes(8)), 'damaged',
  ),
  'many sides': (safetensors({'w': F32 | {'shape': [1] * 100_000}}, bytes(8)), 'at most 8'),
  'a shape of text': (safetensors({'w': F32 | {'shape': 'ab'}}, bytes(8)), 'cannot be read'),
  'a shape of halves': (safetensors({'w': F32 | {'shape': [2.0]}}, bytes(8)), 'cannot be read'),
  'a shape of truth': (safetensors({'w': F32 | {'shape': [True, 2]}}, bytes(8)), 'cannot be read'),
  'a dtype that is a list': (safetensors({'w': F32 | {'dtype': []}}, bytes(8)), 'cannot be read'),
  'a long dtype': (safetensors({'w': F32 | {'dtype': 'x' * 1_000_000}}, bytes(8)), 'w is xxx'),
  'a long name': (safetensors({'x.' * 70_000 + 'layer1.0.conv1.weight': F32}, bytes(8)), 'of 140,021 characters'),
  'not UTF-8': (safetensors(b'{"\xff":1}'), 'cannot be read'),
  'a list': (safetensors(b'{}')[:8] + b'[]', 'neither of torch.save'),
  'a stage of a large number': (safetensors({'layer300000000.0.conv1.weight': F32}, bytes(8)), 'no ResNet'),
  'many stages': (
    safetensors({f'layer{i}.0.conv1.weight': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
                 for i in range(1, 9999)}), 'no ResNet',
  ),
  'many networks': (
    safetensors({f'n{i}.layer1.0.conv1.weight': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
                 for i in range(9999)}), '9999 networks',
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', HEADERS)
def test_the_work_of_a_safetensors_header_is_bounded(tmp_path, name):
  content, expected = HEADERS[name]
  (tmp_path / 'x.safetensors').write_bytes(content)
  assert expected in refuse(tmp_path / 'x.safetensors', trace=len(content) < 1_500_000)


def test_a_pipe_is_not_read(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with alarm(SECONDS):
    assert 'it is a FIFO; expected a regular file' in attempt(tmp_path / 'pipe')


@pytest.fixture(scope='module')
def containers(tmp_path_factory):
  """One small file of each container: their bytes."""
  where = tmp_path_factory.mktemp('good')
  state = make_state(4)
  weights.write(where / 'x.pth', state)
  weights.write(where / 'x.safetensors', state)
  content = entry(where / 'x.pth')['archive/data.pkl']
  keys = [str(i) for i in range(len(state))]
  numbers = b''.join(struct.pack('<q', value.size) + value.tobytes() for value in state.values())
  return {
    'zip': (where / 'x.pth').read_bytes(),
    'legacy': HEADER + content + pickle.dumps(keys, 2) + numbers,
    'safetensors': (where / 'x.safetensors').read_bytes(),
  }


def test_the_containers_are_good(containers, tmp_path, tiny):
  for content in containers.values():
    (tmp_path / 'x').write_bytes(content)
    state = attempt(tmp_path / 'x')
    assert {name: value.tobytes() for name, value in state.items()} == {
      name: value.tobytes() for name, value in make_state(4).items()
    }


OPCODES = b'(.0tRQbceusa]})Nqrhj\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8d\x93\x94JKMGXTUBC'


def mutate(content: bytes, rng: random.Random) -> bytes:
  """Return ``content`` with a few changes, most of them where the description is and not the numbers."""
  out = bytearray(content)
  for _ in range(rng.choice([1, 1, 2, 4])):
    near = rng.randrange(min(2500, len(out)))
    at = rng.choice([near, len(out) - 1 - near, rng.randrange(len(out))])
    kind = rng.randrange(7)
    if kind == 0:
      out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
      out[at] = rng.choice(OPCODES)
    elif kind == 2:
      del out[at : at + rng.randint(1, 40)]
    elif kind == 3:
      start = rng.randrange(len(out))
      out[at:at] = out[start : start + rng.randint(1, 60)] * rng.choice([1, 1, 50])
    elif kind == 4:
      out[at : at + 8] = rng.choice([b'\xff' * 8, b'\0' * 8, struct.pack('<q', 1 << 62), struct.pack('<q', 1 << 31)])
    elif kind == 5:
      digits = [i for i, byte in enumerate(out[:4000]) if 48 <= byte <= 57]
      if digits:
        out[rng.choice(digits) :][:1] = b''
        out[rng.choice(digits)] = rng.choice(b'0123456789-.e"')
    else:
      del out[rng.randrange(len(out) // 2, len(out)) :]
    if not out:
      out = bytearray(b'\x80')
  return bytes(out)


@pytest.mark.parametrize('container', ['zip', 'legacy', 'safetensors'])
def test_mutations_are_one_short_line_or_a_network(containers, container, tmp_path, tiny):
  rng = random.Random(0)
  content = containers[container]
  path = tmp_path / 'x'
  results = {'read': 0, 'refused': 0}
  slowest = 0.0
  tracemalloc.start()
  try:
    for i in range(2000):
      path.write_bytes(bad := mutate(content, rng))
      tracemalloc.reset_peak()
      before = tracemalloc.get_traced_memory()[0]
      start = time.perf_counter()
      with alarm(SECONDS):
        try:
          result = attempt(path)
        except (Exception, TooSlowError) as error:
          pytest.fail(f'mutation {i}: {type(error).__name__}: {error}')
      slowest = max(slowest, time.perf_counter() - start)
      assert tracemalloc.get_traced_memory()[1] - before < 1 << 22, i
      if isinstance(result, str):
        results['refused'] += 1
      else:
        results['read'] += 1
        assert all(value.dtype in (np.float32, np.int64) for value in result.values())
        assert sum(value.nbytes for value in result.values()) <= 16 * len(bad)
  finally:
    tracemalloc.stop()
  print(container, results, f'slowest {slowest:.3f} s')
  assert min(results.values()) > 20
