"""Read the state dict of a torch network with no torch, and with nothing of the file ever run.

`.pth`, `.pt` and `.th` of torch.save, in its zip format and in the one before torch 1.6, and `.safetensors`; which one
it is, is seen from the content. The file is mapped, not copied: float32 tensors are views of it.
"""

import math
import mmap
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxres.errors import InputError
from jaxres.paths import open_regular, user_path
from jaxres.weights import dtypes, pickles, safetensors

WRAPPERS = (
  'state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'network', 'weights', 'params',
  'state_dict_ema', 'model_ema', 'ema_state_dict', 'ema',
)  # fmt: skip
ANCHOR = 'layer1.0.conv1.weight'  # every network that is read has it; what stands before it is the prefix
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py
LEGACY_PROTOCOL = 1001
MAX_SHARING = 4  # tensors may be views of one storage, but not so that they have many times the file's bytes


class _Storages(NamedTuple):
  """Where the storages lie in the file."""

  data: Any
  places: dict[str, tuple[int, int]]  # key -> (offset, bytes)
  order: str  # of bytes, '<' or '>'


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Return the tensors of the state dict in the file, by torch's names.

  What wraps the state dict (``state_dict``, ``model`` ...) and the prefix of its names (``module.``, ``backbone.`` ...)
  are taken off. float16 and bfloat16 are widened to float32.

  Args:
    path: of the file.

  Returns:
    float32 arrays, read-only, and int64 scalars called ``...num_batches_tracked``.

  Raises:
    InputError: there is no such file, it is of no format that is read, cut off or damaged; it holds anything but
      tensors and plain containers, or numbers of another dtype; or its sizes do not agree.
  """
  path = user_path(path)
  where = str(path)
  if path.is_dir():
    raise InputError(f'{where}: a directory; expected a file of torch.save or safetensors')
  try:
    with open_regular(path) as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except ValueError:
    raise InputError(f'{where}: the file is empty') from None
  except OSError as error:
    raise InputError(f'{where}: cannot be read: {error.strerror or error}') from None
  return strip_prefix(_format(data, where)(data, where), where)


def _format(data: Any, where: str) -> Callable[[Any, str], dict[str, np.ndarray]]:
  """Return the function that reads this kind of file."""
  head = bytes(data[:512])
  if head.startswith(b'PK'):
    return _read_zip
  if head.startswith(b'\x80'):
    return _read_legacy
  if safetensors.looks_like(data):
    return safetensors.read
  text = head.lstrip().lower()
  known = 'a file that is neither of torch.save nor safetensors'
  if head[257:262] == b'ustar':
    known = 'a tar archive (torch before 0.1.2 wrote them, and they can hold anything); unpack it yourself'
  elif text.startswith((b'<!doctype', b'<html', b'<head', b'<?xml')):
    known = 'an HTML page, not weights: the download needs a direct link'
  elif text.startswith(b'version https://git-lfs'):
    known = 'a pointer of Git LFS, not the file: `git lfs pull` brings it'
  elif head.startswith(b'\x1f\x8b'):
    known = 'compressed by gzip; unpack it first'
  raise InputError(f'{where}: {known}')


def _read_zip(data: Any, where: str) -> dict[str, np.ndarray]:
  """Read the format of torch 1.6 and later: a zip archive of stored, never compressed, entries."""
  entries = _entries(data, where)
  names = [name for name in entries if name.endswith('/data.pkl')]
  if len(names) != 1:
    raise InputError(f'{where}: a zip archive, but not of torch.save: it has no data.pkl, or several')
  root = names[0].removesuffix('data.pkl')
  if f'{root}constants.pkl' in entries:
    raise InputError(f'{where}: a TorchScript archive, which holds code; save the state dict of the module instead')
  begin, size = entries[names[0]]
  content, _ = pickles.load(data[begin : begin + min(size, pickles.MAX_BYTES + 1)], where)
  place, length = entries.get(f'{root}byteorder', (0, 0))
  order = '>' if data[place : place + min(length, 8)] == b'big' else '<'
  places = {name.removeprefix(f'{root}data/'): at for name, at in entries.items() if name.startswith(f'{root}data/')}
  return _arrays(unwrap(content, where), _Storages(data, places, order), where)


def _entries(data: Any, where: str) -> dict[str, tuple[int, int]]:
  """Return ``{name: (offset, bytes)}`` of a zip archive, after checking that they are what they say."""
  try:
    with zipfile.ZipFile(data) as archive:  # a mapped file reads and seeks like any other
      infos = archive.infolist()
  except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
    raise InputError(f'{where}: cut off or damaged: {error}') from None
  found: dict[str, tuple[int, int]] = {}
  for info in infos:
    if '..' in info.filename.split('/') or info.filename.startswith('/') or info.filename in found:
      raise InputError(f'{where}: refused: an entry is called {info.filename!r:.80}, which torch.save never writes')
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
      raise InputError(
        f'{where}: refused: {info.filename!r:.80} is compressed or encrypted; torch.save never does that'
      )
    at = info.header_offset
    begin = (
      at + 30 + int.from_bytes(data[at + 26 : at + 28], 'little') + int.from_bytes(data[at + 28 : at + 30], 'little')
    )
    if data[at : at + 4] != b'PK\x03\x04' or begin + info.file_size > len(data):
      raise InputError(f'{where}: cut off or damaged: {info.filename!r:.80} does not lie in the file')
    found[info.filename] = begin, info.file_size
  if sum(size for _, size in found.values()) > len(data):
    raise InputError(f'{where}: refused: its entries overlap')
  with memoryview(data) as view:
    for info in infos:
      begin, size = found[info.filename]
      if info.CRC and zlib.crc32(view[begin : begin + size]) != info.CRC:  # torch can be told to write 0
        raise InputError(f'{where}: damaged: the checksum of {info.filename!r:.80} is wrong')
  return found


def _read_legacy(data: Any, where: str) -> dict[str, np.ndarray]:
  """Read the format before torch 1.6: five pickles, then each storage after its size."""
  magic, at = pickles.load(data, where)
  if magic != LEGACY_MAGIC:
    raise InputError(f'{where}: a pickle, but not of torch.save')
  protocol, at = pickles.load(data, where, at)
  system, at = pickles.load(data, where, at)
  if protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
    raise InputError(f'{where}: torch.save of protocol {protocol!r:.20}, which is not known')
  order = '<' if system.get('little_endian', True) else '>'
  content, at = pickles.load(data, where, at)
  keys, at = pickles.load(data, where, at)
  if not isinstance(keys, list) or not all(type(key) is str for key in keys):
    raise InputError(f'{where}: damaged: it does not list its storages')
  sizes = _storage_sizes(content)
  places: dict[str, tuple[int, int]] = {}
  for key in keys:
    if key not in sizes or at + 8 + sizes[key][1] > len(data):
      raise InputError(f'{where}: cut off or damaged: storage {key!r:.40} does not lie in the file')
    elements = int.from_bytes(data[at : at + 8], 'little' if order == '<' else 'big')
    if elements != sizes[key][0]:
      raise InputError(f'{where}: damaged: storage {key!r:.40} has {elements} numbers, not {sizes[key][0]}')
    places[key] = at + 8, sizes[key][1]
    at += 8 + sizes[key][1]
  return _arrays(unwrap(content, where), _Storages(data, places, order), where)


def _storage_sizes(content: Any) -> dict[str, tuple[int, int]]:
  """Return the elements and the bytes of every storage that ``content`` refers to, at any depth."""
  found: dict[str, tuple[int, int]] = {}
  seen, left = set(), [content]
  while left:
    value = left.pop()
    if isinstance(value, pickles.Tensor):
      size = value.storage.size
      found[value.storage.key] = size, size * dtypes.ITEMSIZE[value.storage.dtype]
    elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
      seen.add(id(value))
      left.extend(value.values() if isinstance(value, dict) else value)
  return found


def unwrap(content: Any, where: str) -> dict[str, pickles.Tensor]:
  """Return the state dict in what a file holds: itself, or under one of ``WRAPPERS``, also twice wrapped.

  Raises:
    InputError: there is none, or something in it is no tensor.
  """
  for _ in range(3):
    key = next((key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    if key is None:
      break
    content = content[key]
  if not isinstance(content, dict) or not any(isinstance(value, pickles.Tensor) for value in content.values()):
    found = f'{type(content).__name__}'
    if isinstance(content, dict):
      found = 'keys ' + (', '.join(f'{key!s:.40}' for key in [*content][:6]) or 'none')
    raise InputError(f'{where}: it holds no state dict; found {found}; known wrappers: {", ".join(WRAPPERS)}')
  for name, value in content.items():
    if type(name) is not str or not isinstance(value, pickles.Tensor):
      raise InputError(f'{where}: {name!s:.80} is no tensor but a {type(value).__name__}; expected a state dict')
  return content


def _arrays(tensors: Mapping[str, pickles.Tensor], storages: _Storages, where: str) -> dict[str, np.ndarray]:
  """Return the arrays that ``tensors`` describe, after checking each against its storage."""
  total = 0
  result = {}
  for name, tensor in tensors.items():
    if name == 'n_averaged':  # torch.optim.swa_utils
      continue
    dtypes.check(name, tensor.storage.dtype, where)
    _check_extent(name, tensor, storages, where)
    total += math.prod(tensor.shape) * dtypes.ITEMSIZE[tensor.storage.dtype]
    if total > MAX_SHARING * len(storages.data):
      raise InputError(f'{where}: refused: its tensors have many times the bytes of the file')
    result[name] = _array(tensor, storages)
  return result


def _check_extent(name: str, tensor: pickles.Tensor, storages: _Storages, where: str) -> None:
  storage, offset, shape, strides = tensor
  place = storages.places.get(storage.key)
  if place is None or place[1] != storage.size * dtypes.ITEMSIZE[storage.dtype]:
    found = 'is missing' if place is None else f'has {place[1]} bytes, not {storage.size} {storage.dtype}'
    raise InputError(f'{where}: damaged: the storage of {name} {found}')
  size = math.prod(shape)
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=False))
  if (
    len(shape) != len(strides)
    or len(shape) > 8
    or min([offset, *shape, *strides]) < 0
    or size > storage.size
    or (size and last >= storage.size)
  ):
    raise InputError(f'{where}: damaged: {name} of shape {list(shape)} reaches beyond its {storage.size} numbers')


def _array(tensor: pickles.Tensor, storages: _Storages) -> np.ndarray:
  (dtype, key, size), offset, shape, strides = tensor
  flat = dtypes.array(storages.data, dtype, size, storages.places[key][0], storages.order)
  contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
  if all(a == b or n == 1 for a, b, n in zip(strides, contiguous, shape, strict=True)):
    return flat[offset : offset + math.prod(shape)].reshape(shape)
  steps = tuple(stride * flat.itemsize for stride in strides)
  return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)


def strip_prefix(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
  """Return ``tensors`` without the prefix of their names, such as ``module.`` or ``module.backbone.``.

  The prefix is what stands before ``layer1.0.conv1.weight``. A name that has only its first words, such as
  ``module.head.fc.weight``, loses those.

  Raises:
    InputError: there are several networks in the file, or two names become one.
  """
  prefixes = [name.removesuffix(ANCHOR) for name in tensors if name.endswith(ANCHOR)]
  prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith('.')]
  if len(prefixes) > 1:
    found = ', '.join(repr(prefix) for prefix in prefixes[:6])
    raise InputError(f'{where}: it holds {len(prefixes)} networks, with prefixes {found}; save one of them alone')
  words = prefixes[0].split('.')[:-1] if prefixes else []
  starts = ['.'.join(words[: i + 1]) + '.' for i in range(len(words))][::-1]
  result = {}
  for name, value in tensors.items():
    start = next((start for start in starts if name.startswith(start)), '')
    short = name.removeprefix(start)
    if short in result:
      raise InputError(f'{where}: two tensors are called {short} without their prefix; save one network alone')
    result[short] = value
  return result
