"""The safetensors format: 8 bytes of length, a JSON header, the tensors' bytes.

Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxres.errors import InputError
from jaxres.weights import dtypes

MAX_HEADER = 16 << 20
DTYPES = {
  'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'F64': 'float64', 'I64': 'int64',
  'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U8': 'uint8', 'BOOL': 'bool',
}  # fmt: skip


def looks_like(data: Any) -> bool:
  """Return whether ``data`` begins as the format does."""
  return len(data) > 8 and data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < 1 << 40


def read(data: Any, where: str) -> dict[str, np.ndarray]:
  """Return the tensors in ``data`` by name; float32 ones are views of it.

  Args:
    data: the whole file.
    where: the file, for the error.

  Raises:
    InputError: the file is cut off or damaged, or holds a dtype that is not read.
  """
  length = int.from_bytes(data[:8], 'little')
  if length > min(MAX_HEADER, len(data) - 8):
    raise InputError(f'{where}: damaged or cut off: a safetensors header of {length} bytes in a file of {len(data)}')
  try:
    header = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=_unique)
    header.pop('__metadata__', None)
    entries = [(name, *_entry(entry)) for name, entry in header.items()]
  except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
    raise InputError(f'{where}: damaged: the safetensors header cannot be read: {error}') from None
  base, end = 8 + length, 0
  result = {}
  for name, dtype, shape, begin, stop in sorted(entries, key=lambda entry: entry[3:]):
    size = math.prod(shape)
    if dtype not in DTYPES:
      raise InputError(f'{where}: {name} is {dtype}; expected F32, F16 or BF16')
    if begin != end or stop - begin != size * dtypes.ITEMSIZE[DTYPES[dtype]] or base + stop > len(data):
      raise InputError(f'{where}: damaged or cut off: the bytes of {name} are {begin} to {stop} of {len(data) - base}')
    dtypes.check(name, DTYPES[dtype], where)
    result[name] = dtypes.array(data, DTYPES[dtype], size, base + begin).reshape(shape)
    end = stop
  if base + end != len(data):
    raise InputError(f'{where}: damaged: {len(data) - base - end} bytes belong to no tensor')
  return {name: result[name] for name in header}


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
  """Write float32 and int64 arrays to ``path``.

  Args:
    path: overwritten.
    tensors: by name.
    metadata: of the header.
  """
  codes = {'float32': 'F32', 'int64': 'I64'}
  header: dict[str, Any] = {'__metadata__': dict(metadata)}
  end = 0
  for name, value in tensors.items():
    begin, end = end, end + value.nbytes
    header[name] = {'dtype': codes[value.dtype.name], 'shape': list(value.shape), 'data_offsets': [begin, end]}
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # the tensors begin at a multiple of 8
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for value in tensors.values():
      file.write(np.ascontiguousarray(value).data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise ValueError('a name occurs twice')
  return found


def _entry(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
  dtype, shape, (begin, stop) = entry['dtype'], entry['shape'], entry['data_offsets']
  if any(type(number) is not int or number < 0 for number in [*shape, begin, stop]) or len(shape) > 8:
    raise ValueError('sizes and offsets must be whole numbers, 0 or more')
  return str(dtype), tuple(shape), begin, stop
