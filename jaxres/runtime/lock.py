"""One training in a workdir at a time."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from jaxres.errors import InputError, print_status
from jaxres.paths import read_regular
from jaxres.runtime import distributed

LOCK = '.lock'  # of a workdir: its content is for the message, and what counts is the lock that the kernel holds on it
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # it cannot lock at all
IN_USE = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)  # the last where flock is made of fcntl's locks


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
  """Keep every other training out of ``workdir``, which is made where it is missing; readers look at no lock.

  The lock is of the kernel, which frees it with the process however that ends: a file that is left locks nobody out. Of
  several processes the first holds it for all. What was made for the lock alone goes again.

  Raises:
    InputError: another training is there, or it cannot be made or written.
  """
  with contextlib.ExitStack() as stack:
    refusal = None
    if distributed.is_main_process():
      try:
        stack.enter_context(_lock_workdir(workdir))
      except InputError as error:
        refusal = error
    if distributed.any_process(refusal is not None):
      raise refusal or InputError('--workdir', f'{workdir}: process 0 cannot train there, and says why')
    yield


@contextlib.contextmanager
def _lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
  missing = [path for path in (workdir, *workdir.parents) if not path.exists()]
  if workdir.exists() and not workdir.is_dir():
    raise InputError('--workdir', f'{workdir} is a file', expected='a directory')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError('--workdir', f'cannot make {workdir}: {error.strerror}') from error
  try:
    file = _take_lock(workdir)
    try:
      yield
    finally:
      with contextlib.suppress(OSError):  # it may be deleted with all that is in it, or read-only by now
        (workdir / LOCK).unlink()
      os.close(file)
  finally:
    with contextlib.suppress(OSError):  # one that is no longer empty stays
      for path in missing:
        path.rmdir()


def _take_lock(workdir: pathlib.Path) -> int:
  """Return the descriptor that holds the lock of ``workdir``."""
  path = workdir / LOCK
  while True:
    try:
      file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
      raise InputError('--workdir', f'cannot write in {workdir}: {error.strerror}') from error
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in NO_LOCKS:
        os.close(file)
        raise _explain_refusal(workdir, error) from None
      print_status(f'{workdir}: no locks on this file system ({error.strerror}): see that nothing else trains there')
      break
    if _is_at(file, path):  # or the one before deleted it as it ended
      break
    os.close(file)
  with contextlib.suppress(OSError):  # a full disk: it is for the message alone
    os.ftruncate(file, 0)
    os.write(file, json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}).encode())
  return file


def _explain_refusal(workdir: pathlib.Path, error: OSError) -> InputError:
  """Return the error of a lock that is not to be had."""
  if error.errno not in IN_USE:
    problem = f'cannot lock {workdir / LOCK}: {error.strerror}'
    return InputError('--workdir', problem, fix='look at the disk, or use another --workdir')
  holder = find_trainer(workdir) or 'another process'
  problem = f'{workdir} is in use: {holder} trains there'
  return InputError('--workdir', problem, fix='wait for its end, or use another --workdir')


def _is_at(file: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file), path.stat())
  except FileNotFoundError:
    return False


def find_trainer(workdir: pathlib.Path) -> str | None:
  """Return who says that it trains in ``workdir``, such as ``'process 7 on host a'``; None where nobody does."""
  try:
    content = json.loads(read_regular(workdir / LOCK, 4096))
    number, host = int(content['pid']), str(content['host'])[:99]
    if host == socket.gethostname():
      os.kill(number, 0)  # which only looks whether it is there
  except PermissionError:
    pass  # of another user
  except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
    return None
  return f'process {number} on host {host}'
