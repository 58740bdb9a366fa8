"""The paths that a person gives: where they lead, and whether what lies there is a file that ends."""

import errno
import io
import os
import pathlib
import re
import shlex
import stat

from jaxres.errors import InputError, printable

MAX_TEXT_BYTES = 64 << 20  # of a file of class names, JSON or Python that is read at once
RUN_FILES = ('config.json', 'data.json', 'environment.json', 'metrics.jsonl', 'seeds.json', 'folds.json')
WEIGHTS_FILES = ('model.json', 'weights.safetensors')
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*):/')  # pathlib makes one slash of two
_KINDS = {
  stat.S_IFDIR: 'a directory',
  stat.S_IFIFO: 'a FIFO',
  stat.S_IFSOCK: 'a socket',
  stat.S_IFCHR: 'a character device',
  stat.S_IFBLK: 'a block device',
}


def user_path(given: str | os.PathLike[str], flag: str = '') -> pathlib.Path:
  """Return the path that a person gave, a leading ``~`` replaced by the home directory.

  Args:
    given: the path; nothing need be there.
    flag: what gave it, such as ``'--out'``, for the error.

  Raises:
    InputError: it is no text, of another machine (``gs://...``), holds a null byte, is too long, starts with the home
      directory of nobody known, leads through what may not be entered, or is a directory that may not be read.
  """
  text = os.fspath(given) if isinstance(given, str | os.PathLike) else given
  if not isinstance(text, str):
    raise InputError(flag, expected='a path, as text', found=f'{given!r:.80}')
  where = f'{flag}: {text}' if flag else text
  if scheme := _SCHEME.match(text):
    problem, expected = f'{scheme[1]}:// is not supported', 'a path on this machine'
    raise InputError(where, problem, expected=expected, fix='copy it here or mount it')
  path = pathlib.Path(os.path.expanduser(text))  # pathlib's own takes ./~x for ~x
  if text.startswith('~') and str(path).startswith('~'):
    home = text.partition('/')[0]
    fix = f'give the full path, or ./{home} where a folder is called so'
    raise InputError(where, f'no home directory is known for {home}', fix=fix)
  try:
    if stat.S_ISDIR(os.stat(path).st_mode) and not os.access(path, os.R_OK | os.X_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  except (FileNotFoundError, NotADirectoryError):
    pass
  except ValueError:
    problem = 'it holds a null byte' if '\0' in text else 'the file system cannot encode it'
    raise InputError(where, f'no path: {problem}') from None
  except OSError as error:
    raise InputError(shorten(where), f'no path that can be used: {error.strerror}') from None
  return path.absolute() if path.parts[:1] and path.parts[0].startswith('~') else path  # whoever expands it again


def check_utf8(path: pathlib.Path, flag: str = '') -> pathlib.Path:
  """Return ``path`` where libraries in C++, such as those of checkpoints, can be told it.

  Raises:
    InputError: it, or the working directory where it is relative, is not UTF-8.
  """
  try:
    str(path.absolute()).encode()
  except UnicodeEncodeError:
    where = f'{flag}: {path.absolute()}' if flag else f'{path.absolute()}'
    raise InputError(where, 'the name is not UTF-8, as it must be here', fix='rename it, or choose another') from None
  return path


def output_path(given: str | os.PathLike[str], flag: str) -> pathlib.Path:
  """Return ``user_path`` of a file to write, which takes the place of one that is there.

  Raises:
    InputError: as ``user_path``; or there is a directory, a device, or what a run or converted weights are read from,
      which must not be replaced by a file.
  """
  path = user_path(given, flag)
  if path.exists() and (kind := _kind(os.stat(path).st_mode) or _part_of(path.resolve())):
    raise InputError(flag, f'{path} is {kind}', expected='the name of a file to write')
  return path


def _part_of(path: pathlib.Path) -> str:
  """Return what cannot be read any more once ``path`` is another file; nothing where there is no such thing."""
  folder = path.parent
  if path.name in WEIGHTS_FILES and all((folder / name).is_file() for name in WEIGHTS_FILES):
    return 'a part of converted weights'
  if path.name in RUN_FILES and ((folder / 'checkpoints').is_dir() or path.name in RUN_FILES[-2:]):
    return 'a file of a run'
  inside = any(parent.name == 'checkpoints' and (parent.parent / 'config.json').exists() for parent in path.parents)
  return 'a part of a checkpoint' if inside else ''


def check_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> int:
  """Return the size of a file, in bytes, without opening it: to open a FIFO waits for a writer, forever.

  Raises:
    OSError: there is none, it is no regular file, or it has more than ``max_bytes``; ``strerror`` says which.
  """
  return _check_stat(os.stat(path), path, max_bytes)


def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> io.BufferedReader:
  """Return a regular file opened to be read as bytes. Raises OSError as ``check_regular``, and where it is no file."""
  check_regular(path, max_bytes)
  file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0)), 'rb')
  try:
    _check_stat(os.fstat(file.fileno()), path, max_bytes)  # it may be another file by now
  except OSError:
    file.close()
    raise
  return file


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
  """Return the bytes of a regular file, no more than it says it has: those of /proc say 0 and may never end.

  Raises:
    OSError: as ``open_regular``.
  """
  with open_regular(path, max_bytes) as file:
    return file.read(os.fstat(file.fileno()).st_size)


def shell_word(text: str) -> str:
  r"""Return ``text`` as a word of bash's that can be printed: ``$'caf\xe9'`` where it holds more than plain text."""
  if printable(text) == text:
    return shlex.quote(text)
  return "$'" + printable(text.replace('\\', r'\\').replace("'", r'\'')) + "'"


def shorten(text: str, max_length: int = 200) -> str:
  """Return ``text``, its middle left out where it has more than ``max_length`` characters."""
  half = max_length // 2
  return text if len(text) <= max_length else f'{text[:half]}[...]{text[-half:]}'


def _check_stat(status: os.stat_result, path: str | os.PathLike[str], max_bytes: int | None) -> int:
  if kind := _kind(status.st_mode):
    raise OSError(errno.EINVAL, f'it is {kind}; expected a regular file', os.fspath(path))
  if max_bytes is not None and status.st_size > max_bytes:
    raise OSError(errno.EFBIG, f'it has {status.st_size:,} bytes; expected at most {max_bytes:,}', os.fspath(path))
  return status.st_size


def _kind(mode: int) -> str:
  """Return what is no regular file, such as ``'a FIFO'``; nothing for one that is."""
  return '' if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), 'a special file')
