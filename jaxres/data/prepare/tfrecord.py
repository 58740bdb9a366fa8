"""TFDS sets in tfrecord format, written again as array_record with no TensorFlow.

Both formats hold the same serialized tf.train.Example, so the records are copied as they are. A TFRecord is the length
of its data as uint64, the masked CRC-32C of these 8 bytes, the data, and its masked CRC-32C; numbers are little-endian.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord, "TFRecords format details".
"""

import functools
import importlib
import json
import pathlib
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator
from typing import Any

from jaxres.data.sources import tfds as tfds_lib
from jaxres.errors import InputError
from jaxres.files import file_errors
from jaxres.paths import open_regular, user_path

_HEAD = struct.Struct('<QI')
_CRC = struct.Struct('<I')


def convert(folder: str, data_dir: str | None = None) -> pathlib.Path:
  """Write a set in tfrecord format again as array_record.

  It is written to a folder of another name, which is renamed when it is complete.

  Args:
    folder: the version's folder, .../name/1.2.3 or .../name/config/1.2.3.
    data_dir: where sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets. Not where ``folder`` lies.

  Returns:
    The new folder, data_dir/name/version.

  Raises:
    InputError: ``folder`` is no such set or is damaged, the new one is there, no array_record, or the place cannot
      be written.
  """
  source = user_path(folder)
  shards, full_name = _shards(source)
  target = tfds_lib.root(data_dir) / full_name
  if target.resolve() == source.resolve():
    raise InputError(source, f'it lies in {tfds_lib.root(data_dir)} itself', fix='give another place with --data_dir')
  if target.exists():
    raise InputError(target, 'it exists', fix='move it away or choose another --data_dir')
  if not tfds_lib.has_array_record():
    raise InputError(target, 'array_record is not installed (it has wheels for Linux only)')
  with file_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'incomplete.{secrets.token_hex(4)}_{target.name}')
    part.mkdir()
    try:
      for shard, size in shards.items():
        _copy_shard(shard, part / shard.name.replace('.tfrecord', '.array_record'), size)
      _copy_metadata(source, part, set(shards))
      part.rename(target)
    finally:
      shutil.rmtree(part, ignore_errors=True)
  return target


def read(path: pathlib.Path) -> Iterator[bytes]:
  """Yield the records of a TFRecord file.

  The CRC of each length is checked; that of the data where the package google_crc32c or crc32c is installed.

  Raises:
    InputError: the file is missing, truncated or damaged; names it and the record.
  """
  check_data = fast_crc32c()
  with file_errors(path, 'read'), open_regular(path) as file:
    size = path.stat().st_size
    number = 0
    while head := file.read(_HEAD.size):
      length, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (size, 0)
      if len(head) == _HEAD.size and crc != mask_crc(crc32c(head[:8])):
        raise InputError(path, f'record {number} is damaged: the checksum of its length is wrong')
      if file.tell() + length + _CRC.size > size:
        raise InputError(path, f'it is truncated: record {number} ends after the end of the file')
      data = file.read(length)
      crc = _CRC.unpack(file.read(_CRC.size))[0]
      if check_data and crc != mask_crc(check_data(data)):
        raise InputError(path, f'record {number} is damaged: the checksum of its data is wrong')
      yield data
      number += 1


def crc32c(data: bytes) -> int:
  """Return the CRC-32C of a few bytes. Source: RFC 3720, appendix B.4."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _table()[(crc ^ byte) & 0xFF] ^ crc >> 8
  return crc ^ 0xFFFFFFFF


def mask_crc(crc: int) -> int:
  """Return a CRC as TFRecord files keep it: turned right by 15 bits, plus a constant."""
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def fast_crc32c() -> Callable[[bytes], int] | None:
  """Return a CRC-32C for megabytes, or None where none of the packages that have one is installed."""
  for package, function in (('google_crc32c', 'value'), ('crc32c', 'crc32c')):
    try:
      crc: Callable[[bytes], int] = getattr(importlib.import_module(package), function)
    except ImportError:
      continue
    return crc
  return None


@functools.cache
def _table() -> tuple[int, ...]:
  """Return the remainders of all bytes by Castagnoli's polynomial, bits reversed."""
  table = []
  for remainder in range(256):
    for _ in range(8):
      remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    table.append(remainder)
  return tuple(table)


def _shards(folder: pathlib.Path) -> tuple[dict[pathlib.Path, int], str]:
  """Return the shards of a set in tfrecord format with their numbers of records, and its name/config/version."""
  info = folder / 'dataset_info.json'
  if not info.is_file():
    expected = 'the folder of a version of a TFDS set, such as .../mnist/3.0.1'
    raise InputError(folder, 'it has no dataset_info.json', expected=expected)
  form = tfds_lib.file_format(info)
  if form != 'tfrecord':
    raise InputError(folder, f'it is in {form} format', expected='tfrecord')
  import tensorflow_datasets as tfds  # slow; never imports TensorFlow here

  try:
    builder_info = tfds.builder_from_directory(folder).info
    shards = {
      pathlib.Path(path): int(size)
      for split in builder_info.splits.values()
      for path, size in zip(split.filepaths, split.shard_lengths, strict=True)
    }
  except Exception as error:  # TFDS raises nearly every type there is
    raise InputError(folder, f'cannot be read: {" ".join(str(error).split())}') from error
  missing = [shard for shard in shards if not shard.is_file()]
  if missing:
    raise InputError(folder, f'it has no file {missing[0].name}')
  return shards, builder_info.full_name


def _copy_shard(source: pathlib.Path, target: pathlib.Path, size: int) -> None:
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(target), 'group_size:1')  # as TFDS writes
  try:
    count = 0
    for record in read(source):
      writer.write(record)
      count += 1
  finally:
    writer.close()
  if count != size:
    raise InputError(source, expected=f'{size} records, as dataset_info.json says', found=count)


def _copy_metadata(source: pathlib.Path, target: pathlib.Path, shards: set[pathlib.Path]) -> None:
  """Copy every other file; dataset_info.json states the new format."""
  names = {shard.name for shard in shards}
  for file in source.iterdir():
    if file.is_file() and file.name not in names:
      shutil.copyfile(file, target / file.name)
  info: dict[str, Any] = json.loads((source / 'dataset_info.json').read_text('utf-8'))
  info['fileFormat'] = 'array_record'
  for split in info.get('splits', []):
    if 'filepathTemplate' in split:
      split['filepathTemplate'] = split['filepathTemplate'].replace('.tfrecord', '.array_record')
  (target / 'dataset_info.json').write_text(json.dumps(info, indent=2, sort_keys=True), 'utf-8')
