"""Arrays in ``.npz`` files, read whatever their damage: as they were written, or one error of a known type."""

import math
import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from typing import IO, Any

import numpy as np

from jaxres.paths import open_regular

MAX_RATIO = 1100  # of an .npz file: deflate makes at most 1,032 bytes of one
# What NumPy, zipfile and zlib raise of damage: of what they read, of an unknown or encrypted member, of a header.
DAMAGE = (
  OSError, ValueError, LookupError, EOFError, MemoryError, RuntimeError, TypeError, SyntaxError, OverflowError,
  zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip


def load_npz(path: pathlib.Path, *names: str) -> dict[str, np.ndarray]:
  """Return the arrays of an ``.npz`` file by their names: all, or those called ``names``.

  What is read takes no more memory than the file's size allows for, whatever its headers say.

  Raises:
    ValueError: it cannot be read, an array is missing, or a member is no array.
  """
  try:
    with open_regular(path) as raw:
      _check_members(raw)
      with np.load(raw, allow_pickle=False) as file:  # np.load(path) leaks a damaged file
        arrays = {name: file[name] for name in names or file.files}
  except DAMAGE as error:
    objects = 'it holds Python objects, or is another kind of file'
    reason = getattr(error, 'strerror', None) or f'{error}' or type(error).__name__
    raise ValueError(objects if 'pickle' in str(error) else f'{" ".join(reason.split()):.160}') from error
  return arrays


def _check_members(raw: IO[bytes]) -> None:
  """Raise ValueError where a member is no array, or says that it is larger than it can be; leave ``raw`` at 0."""
  size = os.fstat(raw.fileno()).st_size
  with zipfile.ZipFile(raw) as archive:
    members = archive.infolist()
    raw.seek(-22 - len(archive.comment), os.SEEK_END)  # the record at the end says how many there are
    if not members or struct.unpack('<4s4xH', raw.read(10)) != (b'PK\5\6', len(members)):
      raise ValueError('its members are not as many as it says')
    if sum(member.compress_size for member in members) > size or len({m.filename for m in members}) < len(members):
      raise ValueError('its members lie in each other')
    for member in members:
      if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f'{member.filename!r:.60} is compressed as NumPy does not')
      if member.file_size > MAX_RATIO * member.compress_size + 1024:
        raise ValueError(f'{member.filename!r:.60} cannot have {member.file_size:,} bytes')
      with archive.open(member) as file:
        _check_header(member, file)
  raw.seek(0)


def _check_header(member: zipfile.ZipInfo, file: IO[bytes]) -> None:
  """Raise ValueError where ``file`` does not begin as an array of the size of ``member``."""
  name = f'{member.filename!r:.60}'
  if file.read(6) != np.lib.format.MAGIC_PREFIX or not member.filename.endswith('.npy'):
    raise ValueError(f'{name} is no array')
  version = (*file.read(2),)
  headers: dict[tuple[int, ...], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  read = headers.get(version)
  if read is None:
    raise ValueError(f'{name} is of another version of NumPy')
  shape, _, dtype = read(file)
  size = math.prod(shape) * dtype.itemsize
  if dtype.hasobject:
    raise ValueError('an array of Python objects, which only pickle reads')
  if min(shape, default=0) < 0 or size != member.file_size - file.tell():
    raise ValueError(f'{name} says that it has {size:,} bytes, and has {member.file_size - file.tell():,}')
