"""Files: written whole or not at all, read whatever their damage, the errors of the file system in one line."""

import contextlib
import errno
import pathlib
import secrets
from collections.abc import Iterator
from typing import IO

import numpy as np

from jaxres import distributed
from jaxres.errors import InputError
from jaxres.paths import open_regular

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def complete(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Open a .part file beside ``path``, named so on success and removed on any failure.

  Its name is its own, so that two processes that prepare the same set do not meet.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
  try:
    with part.open('xb') as file:
      yield file
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def load_npz(path: pathlib.Path, *names: str) -> dict[str, np.ndarray]:
  """Return the arrays of an ``.npz`` file by their names: all, or those called ``names``.

  Raises:
    ValueError: it cannot be read, or an array is missing. Damage shows as errors of NumPy, zipfile, zlib or of the
      memory that a header asks for, of a dozen kinds.
  """
  try:
    with open_regular(path) as raw, np.load(raw, allow_pickle=False) as file:  # np.load(path) leaks a damaged file
      return {name: file[name] for name in names or file.files}
  except Exception as error:
    objects = 'it holds Python objects, or is another kind of file'
    reason = getattr(error, 'strerror', None) or error or type(error).__name__
    raise ValueError(objects if 'pickle' in str(error) else f'{reason}') from error


@contextlib.contextmanager
def file_errors(path: pathlib.Path, verb: str = 'write') -> Iterator[None]:
  """Turn an error of the file system, such as a full disk, into one line."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
    if isinstance(error, OSError) and error.errno in FULL:
      fix = 'make room and give the same command again'
      raise InputError(f'the disk is full: cannot write {path}: {error.strerror}; {fix}') from error
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'cannot {verb} {path}: {reason}') from error


def write_whole(path: pathlib.Path, text: str | bytes) -> None:
  """Write ``text`` to ``path``, whole or not at all; of several processes the first does.

  Raises:
    InputError: it cannot be written, such as to a full disk.
  """
  if not distributed.leads():
    return
  with file_errors(path), complete(path) as file:
    file.write(text.encode() if isinstance(text, str) else text)


def append(path: pathlib.Path, data: bytes) -> None:
  """Append ``data`` to ``path``, whole or not at all.

  Raises:
    InputError: it cannot be written, such as to a full disk.
  """
  with file_errors(path), path.open('ab', buffering=0) as file:
    before, rest = file.tell(), memoryview(data)
    try:
      while rest:
        rest = rest[file.write(rest) :]
    except OSError:
      file.truncate(before)
      if not before:
        path.unlink()
      raise


def read_lines(path: pathlib.Path) -> list[str]:
  """Return the whole lines of ``path``; none where it is missing."""
  if not path.exists():
    return []
  return [line for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]
