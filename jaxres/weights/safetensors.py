"""The safetensors format through the library of that name, with stricter checks around it.

The library takes the last of two tensors of one name, and any dtype; here both are refused, as is what jaxres does not
read, before the library is given the file.

Source: https://github.com/huggingface/safetensors, "Format": 8 bytes of length, a JSON header, the tensors' bytes.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxres.errors import InputError
from jaxres.weights import dtypes
from jaxres.weights.names import describe_value

MAX_HEADER = 4 << 20  # bytes; that of a ResNet-152 has 100 kB
MAX_DIMENSIONS = 8
DTYPES = {
  'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'F64': 'float64', 'I64': 'int64',
  'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U8': 'uint8', 'BOOL': 'bool',
}  # fmt: skip


class Entry(NamedTuple):
  """What the header says of a tensor; the bytes are those of the file after its header."""

  name: str  # in the file
  dtype: str  # as torch calls it, or as the header does where jaxres does not know it
  shape: tuple[int, ...]
  start: int
  stop: int


def looks_like(data: Any) -> bool:
  """Return whether ``data`` starts as the format does."""
  return len(data) > 8 and data[8:9] == b'{'


def read(data: bytes, where: str) -> dict[str, np.ndarray]:
  """Return all tensors in ``data`` by name, in the order of the header.

  Args:
    data: the file, as bytes.
    where: the file, for the error.

  Raises:
    InputError: the file is cut off or damaged, or holds a dtype that is not read.
  """
  header = entries(data, where)
  for name, entry in header.items():
    if problem := dtypes.problem(name, entry.dtype):
      raise InputError(where, problem)
  return arrays(data, header, where)


def entries(data: Any, where: str) -> dict[str, Entry]:
  """Return what the header says of each tensor, after checking that all of it lies in the file and nothing is twice.

  Args:
    data: the file, as bytes or mapped.
    where: the file, for the error.

  Raises:
    InputError: the file is cut off or damaged.
  """
  length = int.from_bytes(data[:8], 'little')
  if length > len(data) - 8 or len(data) < 8:
    raise InputError(where, f'damaged or cut off: a safetensors header of {length} bytes in a file of {len(data)}')
  if length > MAX_HEADER:
    raise InputError(where, f'refused: a safetensors header of {length} bytes, more than {MAX_HEADER}')
  try:
    header = json.loads(bytes(data[8 : 8 + length]).decode(), object_pairs_hook=_unique)
    header.pop('__metadata__', None)
    result = {name: _entry(name, entry) for name, entry in header.items()}
  except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
    reason = describe_value(str(error), 100)
    raise InputError(where, f'damaged: the safetensors header cannot be read: {reason}') from None
  _check_extents(result, len(data) - 8 - length, where)
  return result


def arrays(data: bytes, header: Mapping[str, Entry], where: str) -> dict[str, np.ndarray]:
  """Return the tensors of ``header``, whose dtypes are ones that ``dtypes.problem`` has nothing against.

  Args:
    data: the file, as bytes.
    header: some of ``entries``, by the names that the result is to have.
    where: the file, for the error.

  Raises:
    InputError: the library finds the file damaged.
  """
  from safetensors import SafetensorError, deserialize

  try:
    content = dict(deserialize(data))
  except SafetensorError as error:
    raise InputError(where, f'damaged or cut off: {describe_value(str(error), 100)}') from None
  result = {}
  for name, (given, dtype, shape, *_) in header.items():
    raw = dtypes.view(content[given]['data'], dtype, math.prod(shape), 0)
    result[name] = dtypes.convert(raw, dtype, name, where).reshape(shape)
  return result


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
  """Write arrays to ``path``.

  Args:
    path: overwritten.
    tensors: by name.
    metadata: of the header.
  """
  from safetensors.numpy import save

  contiguous = {name: value.copy(order='C') for name, value in tensors.items()}  # it reads memory as it lies
  path.write_bytes(save(contiguous, dict(metadata)))


def _check_extents(header: Mapping[str, Entry], size: int, where: str) -> None:
  """Raise InputError where the tensors are not the ``size`` bytes after the header, each once and in a row."""
  end = 0
  for name, entry in sorted(header.items(), key=lambda item: item[1][3:]):
    bits = dtypes.ITEMSIZE.get(entry.dtype)
    fits = bits is None or entry.stop - entry.start == math.prod(entry.shape) * bits
    if entry.start != end or entry.stop < end or entry.stop > size or not fits:
      problem = f'the bytes of {describe_value(name)} are {entry.start:.4g} to {entry.stop:.4g} of {size}'
      raise InputError(where, f'damaged or cut off: {problem}')
    if math.prod(max(n, 1) for n in entry.shape) > max(size, 1):
      raise InputError(where, f'damaged: {describe_value(name)} has no numbers and a shape beyond the file')
    end = entry.stop
  if end != size:
    raise InputError(where, f'damaged: {size - end} bytes belong to no tensor')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) != len(pairs):
    raise ValueError('a name occurs twice')
  return fields


def _entry(name: str, entry: Mapping[str, Any]) -> Entry:
  dtype, shape, (start, stop) = entry['dtype'], entry['shape'], entry['data_offsets']
  if type(dtype) is not str or type(shape) is not list or len(shape) > MAX_DIMENSIONS:
    raise ValueError('expected a dtype, and a shape of at most 8 numbers')
  if any(type(number) is not int or not 0 <= number < 1 << 63 for number in (*shape, start, stop)):
    raise ValueError('sizes and offsets must be whole numbers, 0 or more')
  return Entry(name, DTYPES.get(dtype, dtype), tuple(shape), start, stop)
