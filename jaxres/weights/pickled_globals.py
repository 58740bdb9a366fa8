"""The globals that a pickle of torch.save may name, and the plain values that are made of them; no other is known."""

from collections.abc import Callable
from typing import Any, NamedTuple

MAX_DIMENSIONS = 64  # of any tensor; a network has 4
MAX_KEY = 1 << 32  # of a number that is a key: larger ones can be chosen so that all have one hash


class Storage(NamedTuple):
  """A run of numbers in the file."""

  dtype: str
  key: str
  size: int  # elements


class Tensor(NamedTuple):
  """A view of a storage; nothing of it has been checked against the storage yet."""

  storage: Storage
  offset: int  # elements, as the strides
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Global(NamedTuple):
  """A global that may be named: a storage's dtype, or a function of the arguments of REDUCE."""

  name: str
  dtype: str = ''
  make: Callable[..., Any] | None = None


def _make_ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
  if type(pairs) not in (list, tuple):
    raise ValueError('an OrderedDict of no pairs')
  result: dict[Any, Any] = {}
  for pair in pairs:
    if type(pair) not in (list, tuple) or len(pair) != 2:
      raise ValueError('an OrderedDict of no pairs')
    result[check_key(pair[0])] = pair[1]
  return result


def _namespace() -> dict[Any, Any]:
  """Return what stands for an argparse.Namespace, which training scripts save beside the weights: nothing of it."""
  return {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
  if not isinstance(storage, Storage) or type(shape) not in (list, tuple) or type(strides) not in (list, tuple):
    raise ValueError('the arguments of a tensor')
  if max(len(shape), len(strides)) > MAX_DIMENSIONS:
    raise ValueError(f'a tensor of {max(len(shape), len(strides))} dimensions')
  if any(type(number) is not int or abs(number) >= 1 << 63 for number in (offset, *shape, *strides)):
    raise ValueError('the arguments of a tensor')
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> Tensor:
  if not isinstance(data, Tensor):
    raise ValueError('a parameter without a tensor')
  return data


def check_key(key: Any) -> Any:
  """Return ``key`` where a dict may have it; a deeply nested tuple would overflow the stack when it is hashed."""
  if type(key) not in (str, int, float, bool, bytes):
    raise ValueError(f'a dict key of type {type(key).__name__}')
  if type(key) in (int, float) and not abs(key) < MAX_KEY:
    raise ValueError('a dict key that is no small number')
  return key


STORAGES = {
  'FloatStorage': 'float32',
  'HalfStorage': 'float16',
  'BFloat16Storage': 'bfloat16',
  'DoubleStorage': 'float64',
  'LongStorage': 'int64',
  'IntStorage': 'int32',
  'ShortStorage': 'int16',
  'CharStorage': 'int8',
  'ByteStorage': 'uint8',
  'BoolStorage': 'bool',
}
MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
  ('collections', 'OrderedDict'): _make_ordered_dict,
  ('torch._utils', '_rebuild_tensor'): _tensor,
  ('torch._utils', '_rebuild_tensor_v2'): _tensor,
  ('torch._utils', '_rebuild_parameter'): _parameter,
}
NAMESPACE = Global('argparse.Namespace', make=_namespace)
KNOWN = {key: Global('.'.join(key), make=make) for key, make in MAKERS.items()} | {
  (module, name): Global(f'{module}.{name}', dtype)
  for name, dtype in STORAGES.items()
  for module in ('torch', 'torch.cuda')
}
KNOWN[('argparse', 'Namespace')] = NAMESPACE
