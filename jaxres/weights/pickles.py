"""The part of pickle that torch.save writes for tensors, interpreted here; Python's own unpickler is never used.

A pickle is a program. This interpreter knows the opcodes that build numbers, strings, lists, tuples and dicts, and the
few functions and ten storage types of ``pickled_globals``; it makes plain values of them and nothing else. Any other
global is refused by its name where it is named, before anything could be made of it, and any other opcode by the
opcode's name.

Work and memory are bounded by the bytes of the pickle, whatever it says: an opcode costs no more than the bytes that it
takes, what a call copies is charged against the length of the pickle, and no value of the file is ever formatted,
hashed or compared at depth.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from jaxres.errors import InputError
from jaxres.weights.names import describe_value
from jaxres.weights.pickled_globals import KNOWN, NAMESPACE, Global, Storage, Tensor, check_key

MAX_BYTES = 16 << 20  # of one pickle; that of a ResNet-50 has 40 kB
MAX_OPCODES = 1_000_000  # of one pickle, about a second; that of a ResNet-152 with its optimizer has 40,000
MAX_DEPTH = 1000  # of marks that are open
MAX_TENSORS = 20_000
MAX_ARGUMENTS = 8  # of a call
MAX_LINE = 1000  # bytes


STOP = ord('.')
NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
_CONSTANTS: dict[int, Callable[[], Any]] = {
  ord('N'): lambda: None,
  0x88: lambda: True,
  0x89: lambda: False,
  ord('}'): dict,
  ord(']'): list,
  ord(')'): tuple,
}
_NUMBERS = {ord('J'): '<i', ord('K'): '<B', ord('M'): '<H', ord('G'): '>d'}
_STRINGS = {  # opcode: how its length is written, encoding
  ord('X'): ('<I', 'utf-8'),
  0x8C: ('<B', 'utf-8'),
  0x8D: ('<Q', 'utf-8'),
  ord('T'): ('<i', 'latin-1'),  # the str of Python 2
  ord('U'): ('<B', 'latin-1'),
  ord('B'): ('<I', None),
  ord('C'): ('<B', None),
}
_PUTS = {ord('q'): '<B', ord('r'): '<I'}
_GETS = {ord('h'): '<B', ord('j'): '<I'}


def load(data: Any, where: str, start: int = 0, max_opcodes: int | None = None) -> tuple[Any, int]:
  """Return what the pickle at ``data[start:]`` describes, and where it ends.

  Args:
    data: bytes, or a mapped file.
    where: the file, for the error.
    start: of the pickle.
    max_opcodes: of the pickle; ``MAX_OPCODES`` where not given.

  Returns:
    Numbers, strings, bytes, None, lists, tuples, dicts (an ``OrderedDict`` too becomes one) and ``Tensor``s.

  Raises:
    InputError: it names anything else, is damaged, or is too large.
  """
  machine = _Machine(data, where, start)
  try:
    return machine.run(MAX_OPCODES if max_opcodes is None else max_opcodes), machine.at
  except InputError:
    raise
  except (ValueError, TypeError, LookupError, struct.error, OverflowError) as error:
    reason = str(error) if isinstance(error, ValueError) else 'the pickle breaks off or is damaged'
    raise InputError(where, f'it cannot be read as a file of torch.save: {reason} (byte {machine.at})') from None


class _Machine:
  """The stack machine of a pickle."""

  def __init__(self, data: Any, where: str, start: int) -> None:
    self.data, self.where, self.start, self.at = data, where, start, start
    self.end = min(len(data), start + MAX_BYTES)
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    self.tensors = self.copied = 0

  def run(self, max_opcodes: int) -> Any:
    """Return what is on the stack at the opcode STOP."""
    for _ in range(max_opcodes):
      code = self.take(1)[0]
      if code == STOP:
        return self.stack.pop()
      if code in _CONSTANTS:
        self.stack.append(_CONSTANTS[code]())
      elif code in _NUMBERS:
        self.stack.append(self.number(_NUMBERS[code]))
      elif code in _STRINGS:
        self.stack.append(self.string(*_STRINGS[code]))
      elif code in _PUTS:
        self.memo[self.number(_PUTS[code])] = self.stack[-1]
      elif code in _GETS:
        self.stack.append(self.memo[self.number(_GETS[code])])
      else:
        self.build(code)
    raise ValueError(f'more than {max_opcodes:,} steps')

  def take(self, size: int) -> bytes:
    """Return the next ``size`` bytes."""
    if size < 0 or self.at + size > self.end:
      raise ValueError(
        'the pickle breaks off' if self.end == len(self.data) else f'the pickle exceeds {MAX_BYTES} bytes'
      )
    self.at += size
    return bytes(self.data[self.at - size : self.at])

  def number(self, form: str) -> Any:
    return struct.unpack(form, self.take(struct.calcsize(form)))[0]

  def string(self, form: str, encoding: str | None) -> str | bytes:
    raw = self.take(self.number(form))
    return raw.decode(encoding) if encoding else raw

  def line(self) -> str:
    """Return the text up to the next line end."""
    end = self.data.find(b'\n', self.at, min(self.end, self.at + MAX_LINE))
    if end < 0:
      raise ValueError('the pickle breaks off')
    return self.take(end + 1 - self.at)[:-1].decode('utf-8')

  def items(self) -> list[Any]:
    """Pop and return what lies above the last mark."""
    mark = self.marks.pop()
    items = self.stack[mark:]
    del self.stack[mark:]
    return items

  def build(self, code: int) -> None:
    """Run an opcode that moves or combines what is on the stack."""
    match chr(code):
      case '\x80':  # PROTO
        self.take(1)
      case '\x95':  # FRAME
        self.take(8)
      case '\x8a':  # LONG1
        self.stack.append(int.from_bytes(self.take(self.number('<B')), 'little', signed=True))
      case '(':
        if len(self.marks) >= MAX_DEPTH:
          raise ValueError(f'nested more than {MAX_DEPTH} deep')
        self.marks.append(len(self.stack))
      case '0':
        self.stack.pop()
      case 't':
        self.stack.append(tuple(self.items()))
      case '\x85' | '\x86' | '\x87':  # TUPLE1, 2, 3
        if len(self.stack) < code - 0x84:
          raise LookupError
        self.marks.append(len(self.stack) - (code - 0x84))
        self.stack.append(tuple(self.items()))
      case 's':
        value, key = self.stack.pop(), self.stack.pop()
        self.top(dict)[check_key(key)] = value
      case 'u':
        items = self.items()
        if len(items) % 2:
          raise ValueError('a key without a value')
        self.top(dict).update({check_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)})
      case 'a':
        value = self.stack.pop()
        self.top(list).append(value)
      case 'e':
        items = self.items()
        self.top(list).extend(items)
      case '\x94':  # MEMOIZE
        self.memo[len(self.memo)] = self.stack[-1]
      case _:
        self.make(chr(code))

  def make(self, opcode: str) -> None:
    """Run an opcode that names a global, calls it, or is refused."""
    match opcode:
      case 'c':
        self.stack.append(self.find_global(self.line(), self.line()))
      case '\x93':  # STACK_GLOBAL
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.find_global(module, name))
      case 'R':
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, arguments))
      case '\x81' if self.stack[-2] is NAMESPACE and self.stack[-1] == ():  # NEWOBJ
        self.stack[-2:] = [self.call(NAMESPACE, ())]
      case 'Q':
        self.stack.append(self.storage(self.stack.pop()))
      case 'b':  # BUILD: an OrderedDict's _metadata is not needed
        self.stack.pop()
        self.top(dict)
      case 'i':  # INST
        self.find_global(self.line(), self.line())
        raise self.make_error('opcode INST')
      case other:
        known = NAMES.get(other)
        if known is None:
          raise ValueError('no pickle')
        raise self.make_error(f'opcode {known}')

  def top(self, kind: type) -> Any:
    """Return the top of the stack, which must be of ``kind``."""
    if type(self.stack[-1]) is not kind:
      raise ValueError(f'expected a {kind.__name__}, found a {type(self.stack[-1]).__name__}')
    return self.stack[-1]

  def find_global(self, module: Any, name: Any) -> Global:
    """Return the global of this name where it is one of the few that are known."""
    known = KNOWN.get((module, name)) if type(module) is type(name) is str else None
    if known is None:
      raise self.make_error('.'.join(describe_value(word) for word in (module, name)))
    return known

  def call(self, function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or function.make is None or type(arguments) is not tuple:
      raise ValueError('a call of what is no function')
    if len(arguments) > MAX_ARGUMENTS:
      raise ValueError(f'a call with {len(arguments)} arguments')
    self.copied += sum(len(argument) for argument in arguments if type(argument) in (list, tuple))
    if self.copied > self.at - self.start:  # one list can be given to many calls
      raise ValueError('it makes more than it holds')
    made = function.make(*arguments)
    self.tensors += isinstance(made, Tensor)
    if self.tensors > MAX_TENSORS:
      raise ValueError(f'more than {MAX_TENSORS} tensors')
    return made

  def storage(self, given: Any) -> Storage:
    """Return the storage that a persistent id describes."""
    if type(given) is not tuple or not 5 <= len(given) <= 6 or given[0] != 'storage':
      raise ValueError('an unknown persistent id')
    _, kind, key, _, size, *view = given
    if not isinstance(kind, Global) or not kind.dtype or type(key) is not str or type(size) is not int:
      raise ValueError('the persistent id of a storage')
    if not 0 <= size < 1 << 63:
      raise ValueError('a storage of no size that a file can have')
    if view and view[0] is not None:
      raise ValueError('a view of a storage, which torch has not written since 0.3')
    return Storage(kind.dtype, key, size)

  def make_error(self, what: str) -> InputError:
    return InputError(
      self.where,
      f'refused: its pickle asks for {what}, and only tensors and plain containers are read',
      fix='nothing of it was run. Where you trust the file, save its state dict alone',
    )
