"""Files of weights, intact and hostile, and how to compare what is read from them."""

import json
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from jaxres import weights
from jaxres.errors import InputError
from jaxres.weights import reader

HEADER = b''.join(
  pickle.dumps(value, 2) for value in (reader.LEGACY_MAGIC, reader.LEGACY_PROTOCOL, {'little_endian': True})
)


def make_state(classes: int, channels: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
  """Return the state dict of one basic block of 8 channels with a CIFAR stem, as torch names it."""
  rng = np.random.default_rng(seed)
  state: dict[str, np.ndarray] = {}
  for conv, bn, inputs in (
    ('conv1', 'bn1', channels),
    ('layer1.0.conv1', 'layer1.0.bn1', 8),
    ('layer1.0.conv2', 'layer1.0.bn2', 8),
  ):
    state[f'{conv}.weight'] = rng.standard_normal((8, inputs, 3, 3), np.float32)
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      state[f'{bn}.{leaf}'] = rng.uniform(0.5, 1, 8).astype(np.float32)
    state[f'{bn}.num_batches_tracked'] = np.array(rng.integers(1, 1000), np.int64)
  state['fc.weight'] = rng.standard_normal((classes, 8), np.float32)
  state['fc.bias'] = rng.standard_normal(classes, np.float32)
  return state


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], ordered: bool = True) -> None:
  """Assert that two state dicts are the same: order, names, dtypes, shapes and bits."""
  assert ([*actual] == [*expected]) if ordered else (sorted(actual) == sorted(expected))
  for name, value in expected.items():
    assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
    assert actual[name].tobytes() == value.tobytes(), name


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


def entry(path: pathlib.Path) -> dict[str, bytes]:
  with zipfile.ZipFile(path) as archive:
    return {name: archive.read(name) for name in archive.namelist()}


def tensor(shape, strides, offset=0, size=4, key='0', kind='FloatStorage') -> bytes:
  """Return a pickle of a state dict of one tensor."""
  numbers = lambda values: b'(' + b''.join(b'\x8a\x08' + struct.pack('<q', v) for v in values) + b't'
  storage = (
    b'(' + text('storage') + f'ctorch\n{kind}\n'.encode() + text(key) + text('cpu') + b'K' + bytes([size]) + b'tQ'
  )
  body = b'(' + storage + numbers([offset])[1:-1] + numbers(shape) + numbers(strides) + b'\x89}tR'
  return b'\x80\x02}' + text('w') + b'ctorch._utils\n_rebuild_tensor_v2\n' + body + b's.'


def safetensors(header, data: bytes = b'') -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, 'little') + text + data
