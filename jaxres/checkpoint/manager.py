"""Orbax's manager, whose saves count when they were read again."""

import concurrent.futures
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from etils import epath

from jaxres.checkpoint import reader
from jaxres.checkpoint.disk import explain_disk_errors
from jaxres.errors import InputError

COMMIT_SECONDS = 0.05  # between looks at whether a save is committed, which is then read


@epath.register_path_cls
class Directory(type(epath.Path('/'))):  # type: ignore[misc]  # etils does not export it
  """A path that Orbax takes for what it is: without patterns (``[``), and local even where it starts with ``/gs/``."""

  def glob(self, pattern: str) -> Iterator['Directory']:
    """Yield what matches ``pattern`` in this directory, whose name is not a pattern; Orbax searches it so."""
    yield from map(type(self), pathlib.Path(os.fspath(self)).glob(pattern))

  @property
  def _uri_scheme(self) -> None:
    return None


class Saving(NamedTuple):
  """A save that is under way."""

  path: pathlib.Path
  over: threading.Event  # set when Orbax has done all it will
  difference: concurrent.futures.Future[str | None]  # of what lies on the disk from what was to be saved


class Manager(ocp.CheckpointManager):
  """Orbax's manager; what it has saved counts when it was read again, in another thread, and compared."""

  saving: Saving | None = None  # of the process that leads
  data: Mapping[str, Any] | None = None  # the content of the run's data.json, whose digest each checkpoint has

  def __init__(self, directory: pathlib.Path, options: ocp.CheckpointManagerOptions):
    """Open the checkpoints in ``directory``."""
    super().__init__(Directory(directory), options=options)
    self.place = directory
    self.undeleted: set[pathlib.Path] = set()  # what nothing needs, and could not be deleted
    self._reader = concurrent.futures.ThreadPoolExecutor(1, 'read back')

  def read_back(self, step: int, known: Mapping[str, Any]) -> None:
    """Read the checkpoint of ``step`` when it is committed, and compare it with the digests that it should have."""
    path, over = self.place / str(step), threading.Event()
    self.saving = Saving(path, over, self._reader.submit(_difference, path, over, known))

  def close(self) -> None:
    """Wait for what is being saved."""
    try:
      with explain_disk_errors(self.place):
        super().close()
    finally:
      if self.saving:
        self.saving.over.set()
      self._reader.shutdown()


def _difference(path: pathlib.Path, over: threading.Event, known: Mapping[str, Any]) -> str | None:
  """Return how a checkpoint differs from what was to be saved, when it is there; None also where it is never."""
  while not path.exists() and not over.wait(COMMIT_SECONDS):
    pass
  return reader.difference(path, known) if path.exists() else None


def check_path(directory: pathlib.Path) -> None:
  """Raise InputError where TensorStore would take the path of ``directory`` for another, or for none."""
  text = os.fspath(directory)
  reasons = {
    'it is not UTF-8': any('\ud800' <= letter <= '\udfff' for letter in text),
    "it has a backslash, which would be taken for '/'": '\\' in text,
    "it has a name that ends in 'gs:', which would be taken for a bucket": 'gs:/' in f'{text}/',
  }
  if reason := next((reason for reason, holds in reasons.items() if holds), None):
    shown = text.encode(errors='backslashreplace').decode()
    raise InputError(
      '--workdir', f'{shown}: no checkpoint can be saved under this path: {reason}', fix='use another --workdir'
    )
