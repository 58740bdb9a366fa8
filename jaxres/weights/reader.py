"""Read the state dict of a torch network with no torch, and with nothing of the file ever run.

`.pth`, `.pt` and `.th` of torch.save, in its zip format and in the one before torch 1.6, and `.safetensors`; which one
it is, is seen from the content. The file is mapped, not copied: float32 tensors are views of it.
"""

import math
import mmap
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxres.errors import InputError
from jaxres.paths import open_regular, user_path
from jaxres.weights import dtypes, pickles, safetensors, zipped
from jaxres.weights.names import HEADS, describe_shape, describe_value
from jaxres.weights.selection import Selection, select

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py
LEGACY_PROTOCOL = 1001
MAX_SHARING = 4  # tensors may be views of one storage, but not so that they have many times the file's bytes
SHARD = re.compile(r'-(\d{5})-of-(\d{5})\.')  # of a file that Hugging Face's libraries wrote
JOIN = 'read all parts by safetensors.numpy.load_file, and write one file by save_file'
HEAD_KERNELS = tuple(f'{head}.weight' for head in HEADS)
MAX_PREAMBLE = 100  # opcodes of each of the three pickles before the content of the older format
ArraysOf = Callable[[Mapping[str, Any], frozenset[str]], dict[str, np.ndarray]]


class File(NamedTuple):
  """What was read.

  Attributes:
    tensors: float32 arrays, and int64 scalars called ``...num_batches_tracked``, by torchvision's names.
    skipped: names, in the file and of ``tensors``, that a pattern of ``skip`` matches; some are still in ``tensors``.
    notes: what else a person should know.
  """

  tensors: dict[str, np.ndarray]
  skipped: frozenset[str]
  notes: tuple[str, ...]


class _Storages(NamedTuple):
  """Where the storages lie in the file."""

  data: Any
  places: dict[str, tuple[int, int]]  # key -> (offset, bytes)
  order: str  # of bytes, '<' or '>'


def read(path: str | pathlib.Path, skip: Sequence[str] = (), prefix: str | None = None) -> dict[str, np.ndarray]:
  """Return the tensors of the state dict in the file, by torchvision's names.

  What wraps the state dict (``state_dict``, ``model`` ...) and the prefix of its names (``module.``, ``backbone.`` ...)
  are taken off; the names of ``nn.Sequential`` and of Hugging Face's transformers become torchvision's. float16 and
  bfloat16 are widened to float32, float64 is rounded.

  Args:
    path: of the file.
    skip: regular expressions of names, with or without prefix. What they match is not judged: it is in the result
      where it is such a tensor as a network has, and else it is not.
    prefix: of the network that is meant, such as ``'ema_model'`` or ``'teacher.backbone'``, where there are several;
      what does not belong to it is left out.

  Returns:
    float32 arrays, read-only, and int64 scalars called ``...num_batches_tracked``.

  Raises:
    InputError: there is no such file, it is of no format that is read, cut off or damaged; it holds anything but
      tensors and plain containers, or numbers of another dtype; or its sizes do not agree.
  """
  return read_file(path, skip, prefix).tensors


def read_file(path: str | pathlib.Path, skip: Sequence[str] = (), prefix: str | None = None) -> File:
  """Return what ``read`` does, with what was skipped and what a person should know; the arguments are those of it."""
  path = user_path(path)
  where = str(path)
  if (shard := SHARD.search(path.name)) and int(shard[2]) > 1:
    raise InputError(where, f'part {int(shard[1])} of {int(shard[2])} of a network', fix=JOIN)
  data = _map(path, where)
  content, arrays_of = _format(data, where)(data, where)
  selection = select(content, where, skip, prefix)
  judged = _judge(selection, where)
  tensors = arrays_of(judged, selection.skipped)
  convolutions = [name for name in HEAD_KERNELS if name in tensors and tensors[name].shape[2:] == (1, 1)]
  notes = [f'{name} is a 1x1 convolution: read as a dense layer, which does the same' for name in convolutions]
  return File(_as_torchvision(tensors), selection.skipped, (*_notes(judged, selection), *notes))


def _as_torchvision(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return ``tensors`` in torchvision's shapes: a count is a scalar, and a classifier a matrix."""
  result = dict(tensors)
  for name, value in tensors.items():
    if name.endswith(dtypes.COUNTER) and value.shape == (1,):
      result[name] = value.reshape(())
    elif name in HEAD_KERNELS and value.shape[2:] == (1, 1):
      result[name] = value.reshape(value.shape[:2])
  return result


def _map(path: pathlib.Path, where: str) -> Any:
  """Return the content of a regular file, mapped: a pipe or a device could be read without end."""
  if path.is_dir():
    raise InputError(where, 'a directory', expected='a file of torch.save or safetensors')
  try:
    with open_regular(path) as file:
      return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except ValueError:  # of mmap
    raise InputError(where, 'the file is empty') from None
  except OSError as error:
    raise InputError(where, f'cannot be read: {error.strerror or error}') from None


def _dtype(value: Any) -> str:
  """Return the dtype of what a file says of a tensor, as torch calls it."""
  dtype: str = value.storage.dtype if isinstance(value, pickles.Tensor) else value.dtype
  return dtype


def _judge(selection: Selection, where: str) -> dict[str, Any]:
  """Return the tensors of ``selection`` whose numbers are read, after refusing what is not skipped and cannot be."""
  result = {}
  for name, value in selection.tensors.items():
    is_tensor = isinstance(value, (pickles.Tensor, safetensors.Entry))
    problem = dtypes.problem(name, _dtype(value)) if is_tensor else 'no tensor'
    if not problem:
      result[name] = value
    elif name not in selection.skipped:
      raise InputError(where, problem)
  return result


def _notes(tensors: Mapping[str, Any], selection: Selection) -> tuple[str, ...]:
  wide = sum(_dtype(value) == 'float64' for value in tensors.values())
  halved = sum(name.endswith(dtypes.COUNTER) and _dtype(value) in dtypes.FLOATS for name, value in tensors.items())
  notes = {
    f'{wide} tensors of float64 are rounded to float32': wide,
    f'{halved} counters of batches are not whole numbers in the file: rounded, or 0 where infinite': halved,
    f'{selection.left_out} tensors beside the network are left out': selection.left_out,
  }
  return tuple(note for note, count in notes.items() if count)


def _format(data: Any, where: str) -> Callable[[Any, str], tuple[Any, ArraysOf]]:
  """Return the function that reads this kind of file."""
  head = bytes(data[:512])
  if head.startswith(b'PK'):
    return _read_zip
  if head.startswith(b'\x80'):
    return _read_legacy
  if safetensors.looks_like(data):
    return _read_safetensors
  text = head.lstrip().lower()
  known = 'a file that is neither of torch.save nor safetensors'
  if head[257:262] == b'ustar':
    known = 'a tar archive (torch before 0.1.2 wrote them, and they can hold anything); unpack it yourself'
  elif text.startswith((b'<!doctype', b'<html', b'<head', b'<?xml')):
    known = 'an HTML page, not weights: the download needs a direct link'
  elif text.startswith(b'version https://git-lfs'):
    known = 'a pointer of Git LFS, not the file: `git lfs pull` brings it'
  elif text.startswith(b'{') and b'weight_map' in data[: 1 << 20]:
    known = f'an index of the parts of a network; {JOIN}'
  elif head.startswith(b'\x1f\x8b'):
    known = 'compressed by gzip; unpack it first'
  raise InputError(where, known)


def _read_safetensors(data: Any, where: str) -> tuple[Any, ArraysOf]:
  """Read the header now, and the tensors once they are chosen."""
  header = safetensors.entries(data, where)
  return header, lambda chosen, _: safetensors.arrays(bytes(data), chosen, where)


def _read_zip(data: Any, where: str) -> tuple[Any, ArraysOf]:
  """Read the format of torch 1.6 and later: a zip archive of stored, never compressed, entries."""
  entries = zipped.entries(data, where)
  names = [name for name in entries if name.endswith('/data.pkl')]
  if len(names) != 1:
    raise InputError(where, 'a zip archive, but not of torch.save: it has no data.pkl, or several')
  root = names[0].removesuffix('data.pkl')
  start, size = entries[names[0]]
  content, _ = pickles.load(data[start : start + min(size, pickles.MAX_BYTES + 1)], where)
  place, length = entries.get(f'{root}byteorder', (0, 0))
  order = '>' if data[place : place + min(length, 8)] == b'big' else '<'
  places = {name.removeprefix(f'{root}data/'): at for name, at in entries.items() if name.startswith(f'{root}data/')}
  storages = _Storages(data, places, order)
  return content, lambda chosen, skipped: _arrays(chosen, storages, skipped, where)


def _read_legacy(data: Any, where: str) -> tuple[Any, ArraysOf]:
  """Read the format before torch 1.6: five pickles, then each storage after its size."""
  magic, at = pickles.load(data, where, 0, MAX_PREAMBLE)
  if type(magic) is not int or magic != LEGACY_MAGIC:
    raise InputError(where, 'a pickle, but not of torch.save')
  protocol, at = pickles.load(data, where, at, MAX_PREAMBLE)
  system, at = pickles.load(data, where, at, MAX_PREAMBLE)
  if type(protocol) is not int or protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
    version = str(protocol) if type(protocol) is int else describe_value(protocol)
    raise InputError(where, f'torch.save of protocol {version:.20}, which is not known')
  order = '<' if system.get('little_endian', True) else '>'
  content, at = pickles.load(data, where, at)
  keys, at = pickles.load(data, where, at)
  if not isinstance(keys, list) or not all(type(key) is str for key in keys):
    raise InputError(where, 'damaged: it does not list its storages')
  sizes = _storage_sizes(content)
  places: dict[str, tuple[int, int]] = {}
  for key in keys:
    if key not in sizes or at + 8 + sizes[key][1] > len(data):
      raise InputError(where, f'cut off or damaged: storage {describe_value(key, 40)!r} does not lie in the file')
    elements = int.from_bytes(data[at : at + 8], 'little' if order == '<' else 'big')
    if elements != sizes[key][0]:
      raise InputError(
        where, f'damaged: storage {describe_value(key, 40)!r} has {elements} numbers, not {sizes[key][0]}'
      )
    places[key] = at + 8, sizes[key][1]
    at += 8 + sizes[key][1]
  storages = _Storages(data, places, order)
  return content, lambda chosen, skipped: _arrays(chosen, storages, skipped, where)


def _storage_sizes(content: Any) -> dict[str, tuple[int, int]]:
  """Return the elements and the bytes of every storage that ``content`` refers to, at any depth."""
  sizes: dict[str, tuple[int, int]] = {}
  seen, left = set(), [content]
  while left:
    value = left.pop()
    if isinstance(value, pickles.Tensor):
      size = value.storage.size
      sizes[value.storage.key] = size, size * dtypes.ITEMSIZE[value.storage.dtype]
    elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
      seen.add(id(value))
      left.extend(value.values() if isinstance(value, dict) else value)
  return sizes


def _arrays(
  tensors: Mapping[str, pickles.Tensor], storages: _Storages, skipped: frozenset[str], where: str
) -> dict[str, np.ndarray]:
  """Return the arrays that ``tensors`` describe, after checking each against its storage."""
  total = 0
  result = {}
  for name, tensor in tensors.items():
    if problem := _extent_problem(tensor, storages):
      if name in skipped:
        continue
      raise InputError(where, f'damaged: {describe_value(name)} {problem}')
    total += math.prod(tensor.shape) * dtypes.ITEMSIZE[tensor.storage.dtype]
    if total > MAX_SHARING * len(storages.data):
      raise InputError(where, 'refused: its tensors have many times the bytes of the file')
    result[name] = dtypes.convert(_view(tensor, storages), tensor.storage.dtype, name, where)
  return result


def _extent_problem(tensor: pickles.Tensor, storages: _Storages) -> str:
  """Return how ``tensor`` does not lie in its storage, or its storage in the file; else nothing."""
  storage, offset, shape, strides = tensor
  place = storages.places.get(storage.key)
  if place is None:
    return 'has a storage that is missing'
  if place[1] != storage.size * dtypes.ITEMSIZE[storage.dtype]:
    return f'has a storage that has {place[1]} bytes, not {storage.size} {storage.dtype}'
  size = math.prod(shape)
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=False))
  if (
    len(shape) != len(strides)
    or len(shape) > 8
    or min([offset, *shape, *strides]) < 0
    or size > storage.size
    or (size and last >= storage.size)
    or math.prod(max(n, 1) for n in shape) > len(storages.data)  # [0, 2**62] has no numbers
  ):
    return f'of shape {describe_shape(shape)} reaches beyond its {storage.size} numbers'
  return ''


def _view(tensor: pickles.Tensor, storages: _Storages) -> np.ndarray:
  """Return the numbers of ``tensor`` as they lie in the file, nothing of them copied."""
  (dtype, key, size), offset, shape, strides = tensor
  flat = dtypes.view(storages.data, dtype, size, storages.places[key][0], storages.order)
  contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
  if all(a == b or n == 1 for a, b, n in zip(strides, contiguous, shape, strict=True)):
    return flat[offset : offset + math.prod(shape)].reshape(shape)
  if 0 in shape:
    return np.zeros(shape, flat.dtype)
  steps = tuple(stride * flat.itemsize for stride in strides)
  return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
