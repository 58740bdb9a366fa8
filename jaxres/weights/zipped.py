"""The entries of a zip archive as torch.save writes it, and nothing of what else an archive can be."""

import struct
import zipfile
import zlib
from typing import Any

from jaxres.errors import InputError
from jaxres.weights.names import describe_value

MAX_ENTRIES = 20_000
MAX_NAME = 500  # characters
DIRECTORY, LOCAL = b'PK\x01\x02', b'PK\x03\x04'  # how an entry starts in the directory, and where its bytes are
LOCAL_SIZE = 30  # bytes, and then the name and an extra field


def entries(data: Any, where: str) -> dict[str, tuple[int, int]]:
  """Return ``{name: (offset, bytes)}`` of the zip archive in ``data``, after checking that they are what they say.

  Args:
    data: the mapped file.
    where: the file, for the error.

  Raises:
    InputError: it is cut off or damaged; or an entry is compressed, overlaps another, occurs twice, or has another
      name, place or checksum than the directory says.
  """
  _count(data, where)
  try:
    with zipfile.ZipFile(data) as archive:  # a mapped file reads and seeks like any other
      infos = archive.infolist()
  except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as error:
    raise InputError(where, f'cut off or damaged: {describe_value(str(error), 100)}') from None
  if any(info.filename.endswith('/constants.pkl') for info in infos):  # its code is compressed
    raise InputError(where, 'a TorchScript archive, which holds code', fix='save the state dict of the module instead')
  extents: dict[str, tuple[int, int]] = {}
  end = 0
  for info in sorted(infos, key=lambda info: info.header_offset):
    _check(info, extents, where)
    start = _data_start(data, info)
    if start is None or start + info.file_size > len(data):
      raise InputError(where, f'cut off or damaged: {describe_value(info.filename)!r} does not lie in the file')
    if info.header_offset < end:
      raise InputError(where, 'refused: its entries overlap')
    end = start + info.file_size
    extents[info.filename] = start, info.file_size
  with memoryview(data) as view:
    for info in infos:
      start, size = extents[info.filename]
      if info.CRC and zlib.crc32(view[start : start + size]) != info.CRC:  # torch can be told to write 0
        raise InputError(where, f'damaged: the checksum of {describe_value(info.filename)!r} is wrong')
  return extents


def _count(data: Any, where: str) -> None:
  """Raise InputError where there are too many entries, before an object is made of each."""
  at = -1
  for _ in range(MAX_ENTRIES + 1):
    if (at := data.find(DIRECTORY, at + 1)) < 0:
      return
  raise InputError(where, f'refused: a zip archive of more than {MAX_ENTRIES:,} entries')


def _check(info: zipfile.ZipInfo, extents: dict[str, tuple[int, int]], where: str) -> None:
  name = info.filename
  if '..' in name.split('/') or name.startswith('/') or name in extents or len(name) > MAX_NAME:
    raise InputError(where, f'refused: an entry is called {describe_value(name)!r}, which torch.save never writes')
  if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
    raise InputError(
      where, f'refused: {describe_value(name)!r} is compressed or encrypted', fix='torch.save never does that'
    )


def _data_start(data: Any, info: zipfile.ZipInfo) -> int | None:
  """Return where the bytes of an entry start; None where its header is not there or has another name."""
  at = info.header_offset
  header = data[at : at + LOCAL_SIZE] if 0 <= at < len(data) else b''
  if len(header) < LOCAL_SIZE or not header.startswith(LOCAL):
    return None
  name, extra = struct.unpack('<HH', header[26:])
  encoding = 'utf-8' if info.flag_bits & 0x800 else 'cp437'
  if data[at + LOCAL_SIZE : at + LOCAL_SIZE + name] != info.orig_filename.encode(encoding):
    return None
  return at + LOCAL_SIZE + name + extra
