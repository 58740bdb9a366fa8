"""The numbers in a weights file, as float32 arrays: widened or narrowed where they lose nothing that is used."""

from typing import Any

import numpy as np

from jaxres.errors import InputError
from jaxres.weights.names import describe_value

ITEMSIZE = {
  'float32': 4, 'float16': 2, 'bfloat16': 2, 'float64': 8,
  'int64': 8, 'int32': 4, 'int16': 2, 'int8': 1, 'uint8': 1, 'bool': 1,
}  # fmt: skip
FLOATS = ('float32', 'float16', 'bfloat16', 'float64')
COUNTER = 'num_batches_tracked'  # of a BatchNorm, int64: kept, for the way back
CODES = {
  'float32': 'f4', 'float16': 'f2', 'bfloat16': 'u2', 'float64': 'f8',
  'int64': 'i8', 'int32': 'i4', 'int16': 'i2', 'int8': 'i1', 'uint8': 'u1',
}  # fmt: skip


def problem(name: str, dtype: str) -> str:
  """Return what is wrong where the tensor ``name`` is of a ``dtype`` that no weight of a network has; else nothing.

  Args:
    name: of the tensor.
    dtype: as torch calls it.
  """
  if dtype in FLOATS or (dtype in CODES and name.endswith(COUNTER)):
    return ''
  fix = 'save the float network, not a quantized one, or leave the tensor out: --skip (init.skip)'
  return f'{describe_value(name)} is {describe_value(dtype)}; expected float32, float16, bfloat16 or float64; {fix}'


def view(data: Any, dtype: str, size: int, offset: int, order: str = '<') -> np.ndarray:
  """Return ``size`` elements at the byte ``offset`` of ``data``, one-dimensional, read-only and not copied.

  Args:
    data: a buffer that holds them; the caller has checked that it does.
    dtype: one that ``problem`` has nothing against.
    size: elements.
    offset: bytes.
    order: ``'<'`` or ``'>'``, of the bytes of an element.
  """
  return np.frombuffer(data, order + CODES[dtype], size, offset)


def convert(raw: np.ndarray, dtype: str, name: str, where: str) -> np.ndarray:
  """Return what ``view`` returned, of any shape, as float32, or int64 where it counts batches.

  float32 stays a view; float16 and bfloat16 are widened, bit for bit the same values; float64 is rounded.

  Args:
    raw: of any shape.
    dtype: as torch calls it.
    name: of the tensor.
    where: the file, for the error.

  Raises:
    InputError: a float64 is too large for float32.
  """
  if dtype == 'bfloat16':
    raw = (raw.astype(np.uint32) << 16).view(np.float32)
  if name.endswith(COUNTER):
    return counters(raw)
  with np.errstate(over='ignore'):
    result = raw.astype(np.float32, copy=False)
  if dtype == 'float64' and (np.isinf(result) & np.isfinite(raw)).any():
    raise InputError(where, f'{describe_value(name)} is float64 and has numbers too large for float32')
  return result


def counters(value: np.ndarray) -> np.ndarray:
  """Return ``num_batches_tracked`` as int64: nothing uses it, so what a halved network made infinite becomes 0."""
  value = np.asarray(value)
  if value.dtype.kind != 'f':
    return value.astype(np.int64, copy=False)
  wide = value.astype(np.float64)
  safe = np.where(np.abs(wide) < 2.0**62, wide, 0)  # not where it is no number either
  return safe.astype(np.int64)
