"""The numbers in a weights file, as arrays: float32 as it is, float16 and bfloat16 widened, all else refused."""

from typing import Any

import numpy as np

from jaxres.errors import InputError

ITEMSIZE = {
  'float32': 4, 'float16': 2, 'bfloat16': 2, 'float64': 8,
  'int64': 8, 'int32': 4, 'int16': 2, 'int8': 1, 'uint8': 1, 'bool': 1,
}  # fmt: skip
COUNTER = 'num_batches_tracked'  # of a BatchNorm, int64: kept, for the way back


def check(name: str, dtype: str, where: str) -> None:
  """Raise InputError where the tensor ``name`` is of a dtype that no weight of a float32 network has.

  Args:
    name: of the tensor, for the error.
    dtype: as torch calls it.
    where: the file, for the error.
  """
  if dtype in ('float32', 'float16', 'bfloat16') or (dtype == 'int64' and name.endswith(COUNTER)):
    return
  fix = 'save the float network, not a quantized one'
  if dtype == 'float64':
    fix = 'save it after `.float()`: narrowed here, it would lose digits unseen'
  raise InputError(f'{where}: {name} is {dtype}; expected float32, float16 or bfloat16; {fix}')


def array(data: Any, dtype: str, size: int, offset: int, order: str = '<') -> np.ndarray:
  """Return ``size`` elements at the byte ``offset`` of ``data``, one-dimensional; float32 is a view, read-only.

  Args:
    data: a buffer that holds them; the caller has checked that it does.
    dtype: one that ``check`` lets through. float16 and bfloat16 become float32, bit for bit the same values.
    size: elements.
    offset: bytes.
    order: ``'<'`` or ``'>'``, of the bytes of an element.
  """
  code = {'float32': 'f4', 'float16': 'f2', 'bfloat16': 'u2', 'int64': 'i8'}[dtype]
  found = np.frombuffer(data, order + code, size, offset)
  if dtype == 'bfloat16':
    return (found.astype(np.uint32) << 16).view(np.float32)
  return found.astype(np.int64 if dtype == 'int64' else np.float32, copy=False)
