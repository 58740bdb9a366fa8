"""Write a state dict with no torch: `.pth` as torch.save does, or `.safetensors`."""

import math
import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from jaxres.errors import InputError
from jaxres.files import complete, file_errors
from jaxres.paths import user_path
from jaxres.weights import safetensors

PTH = ('.pth', '.pt', '.th')
SUFFIXES = (*PTH, '.safetensors')
ALIGNMENT = 64  # of storages, so that torch can map them
STORAGES = {'float32': 'FloatStorage', 'int64': 'LongStorage'}


def write(path: str | pathlib.Path, state_dict: Mapping[str, np.ndarray]) -> None:
  """Write ``state_dict`` to a file, which appears only when it is complete.

  Args:
    path: its suffix says the format: ``.pth``, ``.pt``, ``.th`` (the zip format, which
      ``torch.load(..., weights_only=True)`` reads) or ``.safetensors``.
    state_dict: float32 and int64 arrays by torch's names.

  Raises:
    InputError: the suffix or a dtype is another, or the file cannot be written.
  """
  path = user_path(path)
  if path.suffix not in SUFFIXES:
    raise InputError(path, expected=f'a name that ends in {", ".join(SUFFIXES)}')
  arrays = {name: np.asarray(value) for name, value in state_dict.items()}
  for name, value in arrays.items():
    if value.dtype.name not in STORAGES:
      raise InputError(path, f'{name} is {value.dtype}', expected='float32 or int64')
  with file_errors(path), complete(path) as part:
    if path.suffix in PTH:
      _write_zip(pathlib.Path(part.name), arrays)
    else:
      safetensors.write(pathlib.Path(part.name), arrays, {'format': 'pt'})


def _write_zip(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Write torch's zip format: the pickle, the byte order, each storage, the version."""
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    _add(archive, 'archive/data.pkl', _pickle(arrays))
    _add(archive, 'archive/byteorder', b'little')
    for i, value in enumerate(arrays.values()):
      _add(archive, f'archive/data/{i}', value.astype(value.dtype.newbyteorder('<'), copy=False).tobytes())
    _add(archive, 'archive/version', b'3\n')


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
  """Add an entry whose content starts at a multiple of ``ALIGNMENT``, by a padding field as torch writes it."""
  info = zipfile.ZipInfo(name)  # its date is 1980: equal contents are equal files
  assert archive.fp is not None
  start = archive.fp.tell() + 30 + len(name) + 4
  info.extra = struct.pack('<2sH', b'FB', padding := -start % ALIGNMENT) + b'Z' * padding
  archive.writestr(info, content)


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Return the pickle, protocol 2, of an OrderedDict of tensors, each with its own storage."""
  ordered_dict = b'ccollections\nOrderedDict\n)R'
  out = [b'\x80\x02', ordered_dict, b'(']
  for i, (name, value) in enumerate(arrays.items()):
    storage = f'ctorch\n{STORAGES[value.dtype.name]}\n'.encode()
    strides = [math.prod(value.shape[k + 1 :]) for k in range(value.ndim)]
    out += [_text(name), b'ctorch._utils\n_rebuild_tensor_v2\n(']
    out += [b'(', _text('storage'), storage, _text(str(i)), _text('cpu'), _int(value.size), b'tQ']
    out += [_int(0), _ints(value.shape), _ints(strides), b'\x89', ordered_dict, b'tR']
  return b''.join([*out, b'u.'])


def _text(value: str) -> bytes:
  raw = value.encode()
  return b'X' + struct.pack('<I', len(raw)) + raw


def _int(value: int) -> bytes:
  return b'J' + struct.pack('<i', value) if value < 1 << 31 else b'\x8a\x08' + struct.pack('<q', value)


def _ints(values: tuple[int, ...] | list[int]) -> bytes:
  return b'(' + b''.join(map(_int, values)) + b't'
