"""Whatever a weights file says of its tensors, its refusal is one short line that can be printed."""

import pickle
import random
import struct

import numpy as np
import pytest

from jaxres import models, weights
from jaxres.errors import InputError
from jaxres.weights import pickled_globals, pickles, selection
from tests.weights.files import HEADER, make_state, safetensors, text, write_zip

SHORT = 400  # characters, less the path
CASES = 1500
NUMBERS = [0, 1, -1, 2, 3, 7, 8, 64, 255, 1 << 20, 1 << 31, 1 << 62, (1 << 63) - 1, -(1 << 62), 1 << 63, 1 << 2000]
WORDS = [
  'x', 'x' * 499, 'x' * 5000, '\x1b[2J', '\n', '\r\n', '\u202eevil', '\u2028', '\x00', '日本', '\U0001f600', '%s{x}',
  '[/bold]', ' ', '"', "'", '.', '..', 'layer1.0.conv1.weight', 'a.layer1.0.conv1.weight', 'é' * 499, '\x9b31m',
]  # fmt: skip
DTYPES = [*pickled_globals.STORAGES, 'QInt8Storage', 'UntypedStorage', 'x' * 900, '\x1b[31m']
HEADER_DTYPES = ['F32', 'F16', 'BF16', 'F64', 'I64', 'U8', 'BOOL', 'F8_E4M3', 'x' * 9000, '\x1b[31m\n', '', 7, None, []]


def numbers(rng: random.Random, maximum: int = 64) -> list[int]:
  return [rng.choice(NUMBERS) for _ in range(rng.choice([0, 1, 2, 4, 4, 8, maximum]))]


def long(number: int) -> bytes:
  size = min(255, number.bit_length() // 8 + 1)
  return b'\x8a' + bytes([size]) + (number % (1 << 8 * size)).to_bytes(size, 'little')


def pickle_of(tensors: list[tuple]) -> bytes:
  """Return a pickle of tensors, each a name, a shape, strides, an offset, a key, a kind of storage and its size."""
  content = b'\x80\x02}'
  for name, shape, strides, offset, key, kind, size in tensors:
    storage = b'(' + text('storage') + f'ctorch\n{kind}\n'.encode() + encode(key) + text('cpu') + long(size) + b'tQ'
    lists = b''.join(b'(' + b''.join(map(long, values)) + b't' for values in (shape, strides))
    content += encode(name) + pickles_call(storage + long(offset) + lists + b'\x89}') + b's'
  return content + b'.'


def encode(value: str) -> bytes:
  raw = value.encode()
  return b'X' + struct.pack('<I', len(raw)) + raw


def pickles_call(arguments: bytes) -> bytes:
  return b'ctorch._utils\n_rebuild_tensor_v2\n(' + arguments + b'tR'


def good_tensors() -> list[tuple]:
  state = make_state(4)
  strides = lambda value: [value.strides[i] // value.itemsize for i in range(value.ndim)]
  kind = lambda value: 'LongStorage' if value.dtype == np.int64 else 'FloatStorage'
  return [
    (name, [*value.shape], strides(value), 0, str(i), kind(value), value.size)
    for i, (name, value) in enumerate(state.items())
  ]


def hostile_tensors(rng: random.Random) -> list[tuple]:
  tensors = good_tensors()
  for at in rng.sample(range(len(tensors)), rng.choice([1, 1, 2, 8])):
    name, shape, strides, offset, key, kind, size = tensors[at]
    for _ in range(rng.choice([1, 1, 3])):
      match rng.randrange(8):
        case 0:
          name = rng.choice(WORDS) + rng.choice(['', name])
        case 1:
          shape, strides = numbers(rng), numbers(rng)
        case 2:
          shape = numbers(rng)
          strides = [rng.choice([0, 1, 2]) for _ in shape]
        case 3:
          offset = rng.choice(NUMBERS)
        case 4:
          key = rng.choice(WORDS)
        case 5:
          kind = rng.choice(DTYPES)
        case 6:
          size = rng.choice(NUMBERS)
        case 7:
          name = f'{rng.choice(["layer", "stage", "module.", "a.b."])}{rng.choice(NUMBERS)}.{name}'
    tensors[at] = name, shape, strides, offset, key, kind, size
  return tensors[: rng.choice([1, 5, 99, 99, 99])]


def zip_file(path, rng: random.Random) -> None:
  content = {f'archive/data/{i}': value.tobytes() for i, value in enumerate(make_state(4).values())}
  write_zip(path, {'archive/data.pkl': pickle_of(hostile_tensors(rng))} | content)


def legacy_file(path, rng: random.Random) -> None:
  state = [*make_state(4).values()]
  keys = [str(i) for i in range(len(state))]
  keys[rng.randrange(len(keys))] = rng.choice([keys[0], *WORDS])
  sizes = [rng.choice([value.size] * 40 + [n for n in NUMBERS if 0 <= n < 1 << 63]) for value in state]
  tail = b''.join(struct.pack('<q', size) + value.tobytes() for size, value in zip(sizes, state, strict=True))
  path.write_bytes(HEADER + pickle_of(hostile_tensors(rng)) + pickle.dumps(keys, 2) + tail)


def safetensors_file(path, rng: random.Random) -> None:
  header, data = {}, b''
  for name, value in make_state(4).items():
    kind = 'I64' if value.dtype == np.int64 else 'F32'
    header[name] = {'dtype': kind, 'shape': [*value.shape], 'data_offsets': [len(data), len(data) + value.nbytes]}
    data += value.tobytes()
  for name in rng.sample([*header], rng.choice([1, 1, 2, 8])):
    entry = header.pop(name)
    match rng.randrange(5):
      case 0:
        name = rng.choice(WORDS) + rng.choice(['', name])
      case 1:
        entry['shape'] = numbers(rng, 8)
      case 2:
        entry['dtype'] = rng.choice(HEADER_DTYPES)
      case 3:
        entry['data_offsets'] = [rng.choice(NUMBERS), rng.choice(NUMBERS)]
      case 4:
        entry = rng.choice([rng.choice(WORDS), rng.choice(NUMBERS), None, [], {}, {rng.choice(WORDS): 1}])
    header[name] = entry
  path.write_bytes(safetensors(header, data))


@pytest.mark.parametrize('make', [zip_file, legacy_file, safetensors_file])
def test_what_a_file_says_never_makes_a_long_line(tmp_path, tiny, make):
  rng = random.Random(0)
  path = tmp_path / 'x.pth'
  model = models.create('tiny', num_classes=4)
  lines = set()
  for case in range(CASES):
    make(path, rng)
    try:
      state = weights.read(path)
      weights.recognize(state, str(path))
      weights.to_variables(state, model, where=str(path))
    except InputError as error:
      line = str(error).replace(str(path), '')
      assert line.isprintable(), (case, line)
      assert len(line) < SHORT, (case, len(line), line)
      lines.add(line)
  assert len(lines) > 20


def test_a_shape_of_64_long_numbers(tmp_path):
  shape = [(1 << 62) + i for i in range(64)]
  content = pickle_of([('w', shape, shape, 0, '0', 'FloatStorage', 4)])
  path = write_zip(tmp_path / 'x.pth', {'archive/data.pkl': content, 'archive/data/0': bytes(16)})
  with pytest.raises(InputError, match=r'w of shape \[4\.61e\+18, .*, \.\.\.\] reaches beyond its 4 numbers') as caught:
    weights.read(path)
  assert len(str(caught.value)) - len(str(path)) < 150


class Lookups(frozenset):
  """A set that counts how often it is asked."""

  count = 0

  def __contains__(self, value):
    Lookups.count += 1
    return super().__contains__(value)


@pytest.mark.parametrize('networks', [100, 400])
def test_the_work_of_choosing_one_of_many_networks_is_that_of_reading_their_names(monkeypatch, networks):
  """Each name is looked up as often as it has dots, however many networks there are."""
  entry = pickles.Tensor(pickles.Storage('float32', '0', 1), 0, (1,), (1,))
  content = {f'{prefix}layer1.0.conv1.weight': entry for prefix in ['', *(f'n{i}.' for i in range(networks))]}
  monkeypatch.setattr(Lookups, 'count', 0)
  monkeypatch.setattr(selection, 'frozenset', Lookups, raising=False)
  chosen = selection.select(content, 'x', prefix='')
  assert [*chosen.tensors] == ['layer1.0.conv1.weight']
  assert chosen.left_out == networks
  assert networks <= Lookups.count <= sum(name.count('.') for name in content)


def test_networks_in_each_other_are_told_apart():
  entry = pickles.Tensor(pickles.Storage('float32', '0', 1), 0, (1,), (1,))
  names = ['a.layer1.0.conv1.weight', 'a.b.layer1.0.conv1.weight', 'a.bc.weight', 'ab.weight', 'a.b.fc.weight']
  content = dict.fromkeys(names, entry)
  chosen = selection.select(content, 'x', prefix='a')
  assert sorted(chosen.tensors) == ['bc.weight', 'layer1.0.conv1.weight']
  assert chosen.left_out == 3
  assert sorted(selection.select(content, 'x', prefix='a.b').tensors) == ['fc.weight', 'layer1.0.conv1.weight']


def test_long_keys_are_not_repeated_for_each_network(tmp_path):
  """A label is made of the keys of its dict: of a key of a million letters and a thousand networks, a gigabyte."""
  entry = pickles.Tensor(pickles.Storage('float32', '0', 1), 0, (1,), (1,))
  inner = {f'n{i}.layer1.0.conv1.weight': entry for i in range(1000)}
  with pytest.raises(InputError, match='no state dict'):
    selection.select({'x' * (selection.MAX_NAME + 1): inner}, 'x')
  with pytest.raises(InputError, match='1000 networks'):
    selection.select({'x' * selection.MAX_NAME: inner}, 'x')
