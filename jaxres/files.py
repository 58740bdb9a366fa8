"""Files: written atomically, read with checks for damage, errors of the file system in one line."""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import secrets
import sys
from collections.abc import Iterator
from typing import IO, Any

from jaxres.errors import InputError, printable
from jaxres.paths import open_regular
from jaxres.runtime import distributed

FULL = (errno.ENOSPC, errno.EDQUOT)
MAX_JSON = 8 << 20  # bytes: the names of 20,000 classes take a tenth of it
MAX_DEPTH = 32  # of lists and objects in each other
MAX_DIGITS = 300  # of a whole number in JSON, which a float can still hold
PUT_BACK = 'put it back as jaxres wrote it'


class DamagedError(InputError):
  """What jaxres wrote is no longer what it wrote; the message says which part of it."""


@contextlib.contextmanager
def complete(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Open a .part file beside ``path``, named so on success and removed on any failure.

  Its name is its own, so that two processes that prepare the same set do not meet.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except FileExistsError:
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path.parent)) from None
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
  try:
    with part.open('xb') as file:
      yield file
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def read_bytes(path: pathlib.Path, limit: int) -> bytes:
  """Return the content of a regular file of at most ``limit`` bytes.

  Raises:
    OSError: it cannot be read, is larger, or no regular file.
  """
  with open_regular(path) as file:
    size = os.fstat(file.fileno()).st_size
    content = file.read(limit + 1) if size <= limit else b''
  if max(size, len(content)) > limit:
    raise OSError(f'it has more than {limit:,} bytes')
  return content


def read_json(
  path: pathlib.Path, *, finite: bool = True, where: str = '', fix: str = PUT_BACK, limit: int = MAX_JSON
) -> Any:
  """Return the content of a JSON file; None where there is no file.

  Args:
    path: of a regular file in UTF-8.
    finite: refuse NaN and infinities.
    where: names the file in the error; the path where it is empty.
    fix: what to do about it; left out where it is empty.
    limit: bytes.

  Raises:
    DamagedError: it cannot be read, or is no JSON as jaxres writes it.
  """
  try:
    content = parse_json(read_bytes(path, limit), finite=finite)
    if content is None:
      raise ValueError('it is null')
    return content
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    reason = f'{getattr(error, "strerror", None) or error}'
    raise DamagedError(where or path, f'cannot be read: {reason:.120}', fix=fix) from None


def parse_json(content: bytes | str, *, finite: bool = True) -> Any:
  """Return ``content`` as JSON, of bounded depth, its whole numbers of bounded length, each key of an object once.

  Raises:
    ValueError: it is anything else; the message is short.
  """
  try:
    text = content if isinstance(content, str) else content.decode('utf-8-sig')  # an editor may write the mark
    hooks: dict[str, Any] = {'parse_float': _finite, 'parse_constant': _constant} if finite else {}
    parsed = json.loads(text, object_pairs_hook=_unique, parse_int=_parse_int, **hooks)
  except UnicodeDecodeError as error:
    raise ValueError(f'it is not UTF-8, at byte {error.start:,}') from None
  except RecursionError:
    raise ValueError('lists and objects lie too deep in each other') from None
  if _is_deep(parsed):
    raise ValueError(f'more than {MAX_DEPTH} lists and objects lie in each other')
  return parsed


def _finite(digits: str) -> float:
  value = float(digits)
  if not math.isfinite(value):
    raise ValueError(f'{digits:.20} is no finite number')
  return value


def _constant(word: str) -> float:
  raise ValueError(f'{word} is no finite number')


def _parse_int(digits: str) -> int:
  if len(digits) > MAX_DIGITS:
    raise ValueError(f'a number of {len(digits):,} digits')
  return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  content = dict(pairs)
  if len(content) != len(pairs):
    raise ValueError('a key occurs twice in an object')
  return content


def _is_deep(content: Any) -> bool:
  level = [content]
  for _ in range(MAX_DEPTH):
    level = [
      child
      for node in level
      if isinstance(node, (dict, list))
      for child in (node.values() if type(node) is dict else node)
    ]
    if not level:
      return False
  return any(isinstance(node, (dict, list)) for node in level)


@contextlib.contextmanager
def file_errors(path: pathlib.Path, verb: str = 'write') -> Iterator[None]:
  """Turn an error of the file system, such as a full disk, into one line."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
    if isinstance(error, OSError) and error.errno in FULL:
      fix = 'make room and give the same command again'
      raise InputError(path, f'the disk is full, cannot {verb}: {error.strerror}', fix=fix) from error
    reason = getattr(error, 'strerror', None) or error
    raise InputError(path, f'cannot {verb}: {reason}') from error


def write_atomic(path: pathlib.Path, text: str | bytes) -> None:
  """Write ``text`` to ``path`` atomically; of several processes the first does.

  Raises:
    InputError: it cannot be written, such as to a full disk.
  """
  if not distributed.is_main_process():
    return
  with file_errors(path), complete(path) as file:
    file.write(text.encode() if isinstance(text, str) else text)


def append(path: pathlib.Path, data: bytes) -> None:
  """Append ``data`` to ``path``, all of it or nothing.

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


TIMEOUT_S = 8.0  # for connecting and for each read: with no network it must end within seconds
_CHUNK = 1 << 20
MAX_BYTES = 2 << 30  # of a download whose size is not known


def sha256_of(path: pathlib.Path) -> str:
  """Return the SHA-256 of a file."""
  with file_errors(path, 'read'), open_regular(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def download(url: str, path: pathlib.Path, sha256: str, size: int | None, fix: str) -> None:
  """Download ``url`` to ``path``, which appears only when its SHA-256 is right.

  Args:
    url: of the file.
    path: where it goes.
    sha256: the digest, or its first digits.
    size: bytes; None takes the server's word for it.
    fix: what the user can do where it fails; the error ends with it.

  Raises:
    InputError: it cannot be downloaded, or is another file.
  """
  import pooch  # takes a while, and downloads are rare

  connections: list[Any] = []  # which pooch leaves open where it fails
  hooks = {'response': lambda response, **_: connections.append(response)}
  try:
    with complete(path) as part:
      progress = _Progress(part, size, f'downloading {url}')
      pooch.HTTPDownloader(progressbar=progress, chunk_size=_CHUNK, timeout=TIMEOUT_S, hooks=hooks)(url, part, None)
      digest, count = sha256_of(pathlib.Path(part.name)), part.tell()
      if not digest.startswith(sha256):
        expected = f'{size or count} bytes with sha256 {sha256}'
        raise InputError(url, expected=expected, found=f'{count} bytes with {digest}', fix=f'try again, {fix}')
  except OSError as error:
    response = getattr(error, 'response', None)
    status = f'{response.status_code} {response.reason}' if response is not None else ''
    reason = status or error.strerror or str(error).rpartition(': ')[2].rstrip('")')  # behind the names of classes
    raise InputError(url, f'cannot download to {path}: {reason}', fix=f'try again, {fix}') from error
  finally:
    for connection in connections:
      connection.close()


class _Progress:
  """What ``pooch`` tells how far a download is: a line on standard error; it ends where too much comes."""

  def __init__(self, file: IO[bytes], size: int | None, what: str) -> None:
    self.file, self.what, self.max_bytes, self.total = file, what, size or MAX_BYTES, 0
    self.shown, self.on_terminal = -1, sys.stderr.isatty()

  def update(self, _: int) -> None:
    """Show how much is in the file."""
    done, step = self.file.tell(), 1 if self.on_terminal else 25  # percent
    if done > self.max_bytes:
      raise OSError(errno.EFBIG, f'expected {self.max_bytes} bytes, found more')
    percent = 100 * done // (self.total or self.max_bytes) // step * step
    if percent > self.shown:
      self.shown = percent
      line = f'{self.what}: {done / 1e6:.0f} of {(self.total or self.max_bytes) / 1e6:.0f} MB'
      print(printable(line), end='\r' if self.on_terminal else '\n', file=sys.stderr, flush=True)

  def reset(self) -> None:
    """Do nothing: what is in the file counts."""

  def close(self) -> None:
    """End the line."""
    if self.on_terminal:
      print(file=sys.stderr)
