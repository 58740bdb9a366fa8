"""Renames and deletions, tried again where a network file system refuses them for a while."""

import errno
import os
import pathlib
import secrets
import shutil
import time

from jaxres.errors import InputError

PAUSES = (0.02, 0.05, 0.1, 0.2)  # seconds before each further try
# Of NFS: a handle that the server has forgotten; a directory with a file ``.nfs...``, which another has open still.
PASSING = (errno.ESTALE, errno.EBUSY, errno.ENOTEMPTY, errno.EEXIST)


def rename(old: pathlib.Path, new: pathlib.Path) -> None:
  """Rename ``old``, a directory or a file, to ``new``, which is not there.

  Raises:
    InputError: it cannot be; it is where it was.
  """
  for pause in (*PAUSES, None):
    try:
      os.rename(old, new)
      return
    except OSError as error:
      if isinstance(error, FileNotFoundError) and os.path.lexists(new) and not os.path.lexists(old):
        return  # an answer of the server was lost, and the client asked again
      if error.errno not in PASSING or pause is None:
        fix = 'nothing is lost; look at the file system, and give the same command again'
        raise InputError(old, f'cannot be renamed to {new.name}: {error.strerror}', fix=fix) from None
    time.sleep(pause)


def delete(path: pathlib.Path) -> str | None:
  """Delete a file, or a directory with all that is in it; return why a part of it is still there, or None."""
  reason = None
  for pause in (*PAUSES, None):
    try:
      shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
      return None
    except OSError as error:
      if not os.path.lexists(path):
        return None
      reason = error.strerror or f'{error}'
      if pause is None or error.errno not in (*PASSING, errno.ENOENT):  # what was there a moment ago
        break
    time.sleep(pause)
  return reason


def throw(path: pathlib.Path, trash: pathlib.Path) -> None:
  """Move ``path`` into the directory ``trash``, under a name that nothing there has and that is no step's.

  Raises:
    InputError: it cannot be; it is where it was.
  """
  try:
    trash.mkdir(exist_ok=True)
  except OSError as error:
    raise InputError(trash, f'cannot be made: {error.strerror}', fix='nothing is lost') from None
  rename(path, trash / f'{path.name}.{secrets.token_hex(4)}')
