"""Reading the traces that jax.profiler writes, by protobuf.

jax.profiler.ProfileData reads them too, but ends the process (an abort of nanobind) where a DeprecationWarning
that its types cause is an error, as with PYTHONWARNINGS=error: jaxlib 0.11.2 and 0.12.0.1, docs/known-issues.md.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from jaxres.errors import InputError
from jaxres.files import file_errors

_FIELD = descriptor_pb2.FieldDescriptorProto
_INT, _UINT, _DOUBLE, _BYTES = _FIELD.TYPE_INT64, _FIELD.TYPE_UINT64, _FIELD.TYPE_DOUBLE, _FIELD.TYPE_BYTES
# The part of OpenXLA's xla/tsl/profiler/protobuf/xplane.proto that is read here: number, type of each field; a message
# in a list is repeated. Strings are read as bytes, since one that is no UTF-8 would refuse the file. A map of
# a proto is a repeated message of key and value.
_MESSAGES: dict[str, dict[str, tuple[int, Any]]] = {
  'Stat': {
    'metadata_id': (1, _INT),
    'double_value': (2, _DOUBLE),
    'uint64_value': (3, _UINT),
    'int64_value': (4, _INT),
    'str_value': (5, _BYTES),
    'bytes_value': (6, _BYTES),
    'ref_value': (7, _UINT),
  },
  'Event': {'metadata_id': (1, _INT), 'offset_ps': (2, _INT), 'duration_ps': (3, _INT), 'stats': (4, ['Stat'])},
  'Line': {'name': (2, _BYTES), 'timestamp_ns': (3, _INT), 'events': (4, ['Event'])},
  'Metadata': {'name': (2, _BYTES), 'stats': (5, ['Stat'])},  # of an event or, without stats, of a stat
  'Entry': {'key': (1, _INT), 'value': (2, 'Metadata')},
  'Plane': {
    'name': (2, _BYTES),
    'lines': (3, ['Line']),
    'event_metadata': (4, ['Entry']),
    'stat_metadata': (5, ['Entry']),
  },
  'Space': {'planes': (1, ['Plane'])},
}


class Event(NamedTuple):
  """Something that took time."""

  plane: str  # a device such as '/device:GPU:0', or '/host:CPU'
  line: str  # a stream or thread of it
  name: str
  start_ns: float
  duration_ns: float
  stats: dict[str, Any]


def read(path: pathlib.Path) -> Iterator[Event]:
  """Yield the events of a trace.

  Args:
    path: an ``.xplane.pb`` file.

  Raises:
    InputError: the file cannot be read or is no trace.
  """
  with file_errors(path, 'read'):
    content = path.read_bytes()
  try:
    space = _space_class().FromString(content)
  except message.DecodeError as error:
    raise InputError(path, expected='a trace of jax.profiler', found='a file that is none or is cut off') from error
  for plane in space.planes:
    yield from _events(plane)


def _events(plane: Any) -> Iterator[Event]:
  stat_names = {entry.key: _text(entry.value.name) for entry in plane.stat_metadata}
  kinds = {entry.key: (_text(entry.value.name), _stats(entry.value, stat_names)) for entry in plane.event_metadata}
  for line in plane.lines:
    places = _text(plane.name), _text(line.name)
    for event in line.events:
      name, stats = kinds.get(event.metadata_id, ('', {}))
      start = line.timestamp_ns + event.offset_ps / 1e3
      yield Event(*places, name, start, event.duration_ps / 1e3, stats | _stats(event, stat_names))


def _stats(holder: Any, names: dict[int, str]) -> dict[str, Any]:
  """Return the values of an event, or of its kind, by name."""
  return {names.get(stat.metadata_id, ''): _value(stat, names) for stat in holder.stats}


def _value(stat: Any, names: dict[int, str]) -> Any:
  match stat.WhichOneof('value'):
    case None:
      return None
    case 'ref_value':
      return names.get(stat.ref_value, '')  # texts that occur often are kept once, as names
    case 'str_value':
      return _text(stat.str_value)
    case field:
      return getattr(stat, field)


def _text(content: bytes) -> str:
  return content.decode(errors='replace')


@functools.cache
def _space_class() -> Any:
  """Return the class of the message that a trace is."""
  file = descriptor_pb2.FileDescriptorProto(name='jaxres/xplane.proto', package='jaxres.xplane', syntax='proto3')
  for name, fields in _MESSAGES.items():
    described = file.message_type.add(name=name)
    for field, (number, kind) in fields.items():
      added = described.field.add(name=field, number=number)
      added.label = _FIELD.LABEL_REPEATED if isinstance(kind, list) else _FIELD.LABEL_OPTIONAL
      if isinstance(kind, int):
        added.type = kind
      else:
        added.type, added.type_name = _FIELD.TYPE_MESSAGE, '.jaxres.xplane.' + (kind[0] if added.label == 3 else kind)
      if name == 'Stat' and field != 'metadata_id':
        added.oneof_index = 0
    if name == 'Stat':
      described.oneof_decl.add(name='value')
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName('jaxres.xplane.Space'))
