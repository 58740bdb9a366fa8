"""Checks of the fields of files that jaxres wrote, each with the words of its error message."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from jaxres import files
from jaxres.errors import nearest


class Check(NamedTuple):
  """What a field of a file must be."""

  expected: str  # for a person
  holds: Callable[[Any], bool]


def check_fields(
  content: Any,
  schema: Mapping[str, Check],
  where: object,
  *,
  optional: Collection[str] = (),
  closed: bool = False,
  fix: str = files.PUT_BACK,
) -> dict[str, Any]:
  """Return ``content`` if it is an object with the fields of ``schema``.

  Args:
    content: of ``files.read_json``.
    schema: by field.
    where: the file, for the error.
    optional: fields that may be missing.
    closed: refuse fields that the schema does not know; they are ignored otherwise, as those of a newer jaxres.
    fix: what to do about it; left out where it is empty.

  Raises:
    DamagedError: it is no such object.
  """
  if not isinstance(content, dict):
    raise files.DamagedError(where, expected='an object', found=brief(content), fix=fix)
  for name, check in schema.items():
    shown = name if len(name) <= 40 and name.isprintable() else brief(name)
    if name not in content and name not in optional:
      raise files.DamagedError(f'{where}: {shown}', 'missing', expected=check.expected, fix=fix)
    if name in content and not check.holds(content[name]):
      raise files.DamagedError(f'{where}: {shown}', expected=check.expected, found=brief(content[name]), fix=fix)
  unknown = [name for name in content if name not in schema] if closed else []
  if unknown:
    problem = f'unknown field; {nearest(unknown[0], schema):.120}'
    raise files.DamagedError(f'{where}: {brief(unknown[0])}', problem, fix=fix)
  return content


def brief(value: Any) -> str:
  """Return a short description of a JSON value."""
  if isinstance(value, dict):
    return f'an object of {len(value)}'
  if isinstance(value, list):
    shown = f'[{", ".join(map(repr, value))}]' if len(value) < 5 and all(map(_is_short, value)) else ''
    return shown or f'a list of {len(value):,}'
  return json.dumps(value) if value is None or isinstance(value, bool) else f'{value!r:.40}'


def number(low: float = -math.inf, high: float = math.inf) -> Check:
  """Return the check of a finite number of at least ``low`` and at most ``high``."""
  bounds = f' from {low:g} to {high:g}' if high < math.inf else f' of {low:g} or more' if low > -math.inf else ''
  return Check(f'a finite number{bounds}', lambda x: type(x) in (int, float) and math.isfinite(x) and low <= x <= high)


def integer(low: int, high: int) -> Check:
  """Return the check of a whole number from ``low`` to ``high``."""
  return Check(f'a whole number from {low:,} to {high:,}', lambda x: type(x) is int and low <= x <= high)


def text(max_length: int = 10_000) -> Check:
  """Return the check of a text of at most ``max_length`` characters."""
  return Check('a text', lambda x: type(x) is str and len(x) <= max_length)


def one_of(words: Collection[str]) -> Check:
  """Return the check of one of ``words``."""
  return Check(' or '.join(map(repr, words)), lambda x: type(x) is str and x in words)


def array_of(check: Check, min_items: int = 0, max_items: int = 1 << 20) -> Check:
  """Return the check of a list.

  Args:
    check: of each value.
    min_items: number of values.
    max_items: number of values.
  """
  count = f'{min_items} values' if min_items == max_items else f'{min_items} values or more' if min_items else 'values'
  holds = lambda x: type(x) is list and min_items <= len(x) <= max_items and all(map(check.holds, x))
  return Check(f'a list of {count}, each {check.expected}', holds)


def object_of(check: Check, min_items: int = 0) -> Check:
  """Return the check of an object with at least ``min_items`` values that ``check`` holds for."""
  holds = lambda x: type(x) is dict and len(x) >= min_items and all(map(check.holds, x.values()))
  return Check(f'an object with each value {check.expected}', holds)


def either(*checks: Check) -> Check:
  """Return the check of what one of ``checks`` holds for."""
  return Check(' or '.join(check.expected for check in checks), lambda x: any(check.holds(x) for check in checks))


NOTHING = Check('null', lambda x: x is None)
YES_OR_NO = Check('true or false', lambda x: type(x) is bool)
SHA256 = Check('a SHA-256', lambda x: type(x) is str and len(x) == 64 and set(x) <= set('0123456789abcdef'))


def _is_short(value: Any) -> bool:
  return isinstance(value, (int, float)) and len(repr(value)) < 16
