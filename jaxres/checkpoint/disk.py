"""Room on the disk, and what a full one says."""

import contextlib
import errno
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax

from jaxres.checkpoint import steps
from jaxres.errors import InputError
from jaxres.runtime import distributed
from jaxres.state import TrainState

MARGIN_BYTES = 1 << 20  # of a save, beside the arrays: metadata, digests, the run's other files
AGAIN = 'make room and give the same command again'
AS_BEFORE = 'make it writable, and the same command continues'


def check_room(directory: pathlib.Path, template: TrainState) -> None:
  """Raise InputError where the disk of ``directory`` has no room for one checkpoint of a state like ``template``."""
  leaves = jax.tree.leaves(template.saved_fields)
  check_space(directory, sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves), None)


def check_space(directory: str | pathlib.Path, size: int, step: int | None) -> None:
  """Raise InputError where the disk of ``directory`` has no room for a state of ``size`` bytes."""
  free, needed = shutil.disk_usage(directory).free, size + MARGIN_BYTES
  if free < needed:
    what = 'a checkpoint of this run' if step is None else f'step {step}'
    problem = f'{free / 1e6:,.1f} MB are free, and {what} needs {needed / 1e6:,.1f} MB'
    fix = f'what was saved before is untouched; {AGAIN}'
    raise InputError(directory, f'the disk is full: {problem}', fix=fix)


@contextlib.contextmanager
def explain_disk_errors(directory: pathlib.Path) -> Iterator[None]:
  """Turn the errors of a disk that is full, or cannot be written, into an InputError, without what is half written."""
  try:
    yield
  except Exception as error:  # of Orbax and TensorStore: many kinds
    full, reason = _is_full_disk(error), _file_error(error)
    if isinstance(error, InputError) or not (full or reason):
      raise
    if distributed.is_main_process():
      for partial in directory.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(partial, ignore_errors=True)
    kept = ', '.join(map(str, steps.list_steps(directory))) or 'none'
    problem = 'the disk is full' if full else f'cannot write: {reason}'
    saved = f'saved are the steps: {kept}'
    raise InputError(directory, problem, fix=f'{saved}; {AGAIN if full else AS_BEFORE}') from error


@contextlib.contextmanager
def silence_threads() -> Iterator[None]:
  """Keep TensorStore's threads from printing, of each write that failed, that Orbax does not wait for it any more."""
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == 'Event loop is closed'):
      before(unraisable)

  sys.unraisablehook = hook
  try:
    yield
  finally:
    sys.unraisablehook = before


def _is_full_disk(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if any(words in str(error) for words in ('No space left on device', 'Disk quota exceeded')):
      return True
    error = error.__cause__ or error.__context__
  return False


def _file_error(error: BaseException | None) -> str | None:
  """Return why the system refused to write, of an error or of one that it was raised from; None for another error."""
  refused = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.ENAMETOOLONG)
  while error is not None:
    if isinstance(error, OSError) and error.errno in refused:
      return os.strerror(error.errno)
    if words := next((words for words in map(os.strerror, refused) if words in str(error)), None):
      return words
    error = error.__cause__ or error.__context__
  return None
