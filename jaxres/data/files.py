"""Files that are written whole or not at all, and the errors of the file system in one line."""

import contextlib
import pathlib
import secrets
from collections.abc import Iterator
from typing import IO

from jaxres.errors import InputError


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


@contextlib.contextmanager
def file_errors(path: pathlib.Path, verb: str = 'write') -> Iterator[None]:
  """Turn an error of the file system, such as a full disk, into one line."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'cannot {verb} {path}: {reason}') from error
