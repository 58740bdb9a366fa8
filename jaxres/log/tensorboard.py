"""TensorBoard's event files."""

import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from jaxres import files


class EventFile:
  """A file of TensorBoard's, made at the first row and written in the thread of the caller, who hears of a full disk.

  tensorboardX has a thread for it, which then ends with a traceback, and whoever writes more waits for it forever.
  """

  def __init__(self, workdir: pathlib.Path, start: int):
    """Name a file in ``workdir``; TensorBoard hides what older ones there have behind step ``start``."""
    from tensorboardX import record_writer, summary
    from tensorboardX.proto import event_pb2

    self._event, self._scalar, self._crc = event_pb2.Event, summary.scalar, record_writer.masked_crc32c
    self._path = workdir / f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}'
    self._first = [self._event(wall_time=time.time(), file_version='brain.Event:2')]
    if start:
      start_event = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._first.append(self._event(step=start + 1, session_log=start_event))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Write scalars by their names."""
    make = lambda name, value: self._event(step=step, wall_time=time.time(), summary=self._scalar(name, value))
    events = [*self._first, *(make(name, value) for name, value in values.items())]
    files.append(self._path, b''.join(self._record(event.SerializeToString()) for event in events))
    self._first = []

  def _record(self, data: bytes) -> bytes:
    """Return a TFRecord of ``data``."""
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', self._crc(length)) + data + struct.pack('<I', self._crc(data))
