"""The config: each section is the keyword arguments of one function, so a signature is the schema.

Signatures are read from the source, not by importing it: a misspelled field is found before JAX is loaded.
"""

import ast
import functools
import importlib
import json
import numbers
import os
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from jaxres.errors import InputError, nearest

SECTIONS = {
  'model': ('models/__init__.py', 'create'),
  'init': ('weights/pretrained.py', 'make_init'),
  'data': ('data/__init__.py', 'load'),
  'augment': ('data/augment/__init__.py', 'make'),
  'optim': ('optim/__init__.py', 'make'),
  'train': ('train/options.py', 'Options'),
  'tta': ('evaluate.py', 'make_views'),
  'checkpoint': ('checkpoint/__init__.py', 'open_manager'),
}
WRAPPED = 'parsing config file'  # in the message of what ml_collections makes of any error of the file
MAX_LISTED = 8  # that a message names, of several


class Field(NamedTuple):
  """One field of a section: a type hint and the default."""

  hint: Any
  default: Any


def make(**sections: Mapping[str, Any]) -> config_dict.ConfigDict:
  """Return a complete, checked config: the signatures' defaults, overridden by ``sections``.

  Args:
    **sections: fields by section, such as ``model=dict(name='resnet18')``.

  Returns:
    A locked, type-safe ``ConfigDict`` with every field of every section.

  Raises:
    InputError: a section, field or choice is unknown, or a value has the wrong type.
  """
  problems = [
    f'{section:.100}: unknown config section; {nearest(section, SECTIONS)}'
    for section in sections
    if section not in SECTIONS
  ]
  given = to_dict(sections)
  config = {section: _fill(section, given.get(section, {}), problems) for section in SECTIONS}
  if problems:
    raise InputError(join_limited(problems))
  return config_dict.ConfigDict(config).lock()


def complete(config: Mapping[str, Any]) -> config_dict.ConfigDict:
  """Return ``make(**config)`` of a dict or ``ConfigDict``, which may be partial. Raises as ``make`` does."""
  return make(**to_dict(config))


def to_dict(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return ``config`` as plain nested dicts.

  Raises:
    InputError: it is no dict of dicts.
  """
  if isinstance(config, config_dict.ConfigDict):
    config = config.to_dict()
  if not isinstance(config, Mapping):
    fix = (
      'jaxres.command_line.load(path) reads a file'
      if isinstance(config, str | os.PathLike)
      else "such as {'optim': {...}}"
    )
    raise InputError('config', expected='a dict of sections', found=_describe_value(config), fix=fix)
  for section, fields in config.items():
    if not isinstance(section, str):
      raise InputError(
        'config', expected='names of sections', found=_describe_value(section), fix=f'known: {", ".join(SECTIONS)}'
      )
    if section in SECTIONS and not isinstance(fields, Mapping):
      example = next(iter(schema(section)))
      expected, fix = f'a dict of fields, such as dict({example}=...)', f'known: {", ".join(schema(section))}'
      raise InputError(section, expected=expected, found=_describe_value(fields), fix=fix)
  return {section: dict(fields) if isinstance(fields, Mapping) else fields for section, fields in config.items()}


def check_types(section: str, given: Mapping[str, Any]) -> None:
  """Raise InputError where an argument of a section's function is not of the type that its signature says.

  It is called by the functions themselves, which are called from Python too; arguments that the section has no field
  for are not looked at, nor are unknown words for one of several, which the functions know better.

  Args:
    section: of the config.
    given: arguments by name.
  """
  fields = schema(section)
  for name in given.keys() & fields.keys():
    is_word = isinstance(given[name], str) and any(
      typing.get_origin(option) is typing.Literal for option in _alternatives(fields[name].hint)
    )
    if not is_word and not _fits(_convert(given[name], fields[name].hint), fields[name].hint):
      expected = describe(fields[name].hint)
      raise InputError(f'{section}.{name}', expected=expected, found=_describe_value(given[name]))


def join_limited(lines: Sequence[str], separator: str = '; ') -> str:
  """Return the first ``MAX_LISTED`` of ``lines`` as one, and how many more there are.

  Args:
    lines: of a message.
    separator: between them.
  """
  more = len(lines) - MAX_LISTED
  return separator.join(lines[:MAX_LISTED]) + (f'{separator}and {more} more' if more > 0 else '')


def resolve(field: str, name: str, table: Mapping[str, Any]) -> Any:
  """Return the part of a run that ``name`` names: a row of ``table``, or a user's, as ``package.module:name``.

  Args:
    field: of the config, such as ``'train.task'``.
    name: the value of the field.
    table: what jaxres has, by name.

  Raises:
    InputError: it is neither, or its module cannot be imported.
  """
  if name in table:
    return table[name]
  module, colon, attribute = name.partition(':')
  if not colon:
    problem = f'unknown {field.rpartition(".")[2]} {name!r}, which is no package.module:name either'
    raise InputError(field, problem, fix=nearest(name, table))
  try:
    part = getattr(importlib.import_module(module), attribute, None)
  except (ImportError, ValueError) as error:
    raise InputError(field, f'{name}: {error}', fix='is its folder in PYTHONPATH?') from None
  if not callable(part):
    raise InputError(
      f'{field}: {name}', expected=f'a function called {attribute!r} in {module}', found=_describe_value(part)
    )
  return part


def _describe_value(value: Any) -> str:
  """Return a value and its type, no longer than a line allows."""
  kind = type(value)
  plain = value is None or isinstance(value, str | numbers.Number | list | tuple | dict | os.PathLike)
  return f'{value!r:.80} ({kind.__name__})' if plain else f'a {kind.__module__.partition(".")[0]} {kind.__name__}'


def to_json(config: Mapping[str, Any]) -> str:
  """Return ``config`` as indented JSON with sorted keys."""
  return json.dumps(to_dict(config), indent=2, sort_keys=True) + '\n'


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Return ``{'section.field': (old, new)}`` of every field whose JSON differs between two configs.

  Args:
    old: a config, or a dict of sections.
    new: another.
  """
  flat = [
    {f'{s}.{f}': v for s, fields in json.loads(to_json(c)).items() for f, v in fields.items()} for c in (old, new)
  ]
  paths = sorted(flat[0].keys() | flat[1].keys())
  return {p: (flat[0].get(p), flat[1].get(p)) for p in paths if flat[0].get(p) != flat[1].get(p)}


def describe_changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
  """Return ``differences`` in words, the first of them where there are many."""
  return join_limited(
    [
      f'{path} was {json.dumps(old):.100} there and is {json.dumps(new):.100} now'
      for path, (old, new) in changed.items()
    ],
    ', ',
  )


@functools.cache
def schema(section: str) -> Mapping[str, Field]:
  """Return the fields of ``section``: of its class, or the parameters of its function that are not positional-only."""
  file, function = SECTIONS[section]
  tree = ast.parse((pathlib.Path(__file__).parent / file).read_text())
  node = next(n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == function)
  if isinstance(node, ast.ClassDef):  # a NamedTuple
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    return {ast.unparse(n.target): Field(_hint(n), ast.literal_eval(n.value or ast.Constant(None))) for n in fields}
  a = node.args
  pairs = [*zip(a.args[::-1], a.defaults[::-1], strict=False)][::-1]
  pairs += [(arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True) if default]
  parameters = {arg.arg: Field(_hint(arg), ast.literal_eval(default)) for arg, default in pairs}
  return {name: field for name, field in parameters.items() if field.hint is not Any}  # only code gives those


def _hint(arg: ast.arg | ast.AnnAssign) -> Any:
  return eval(ast.unparse(arg.annotation or ast.Name('object')), {'Literal': typing.Literal, 'Any': Any})


def _fill(section: str, given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Return the complete section; what is wrong with it is added to ``problems``, field by field."""
  fields = schema(section)
  problems += [f'{section}.{name}: unknown field; {nearest(name, fields)}' for name in given if name not in fields]
  filled = {}
  for name, field in fields.items():
    try:
      filled[name] = _coerce(f'{section}.{name}', given.get(name, field.default), field.hint)
    except InputError as error:
      problems.append(str(error))
  return filled


def _coerce(path: str, value: Any, hint: Any) -> Any:
  """Return ``value`` as ``hint`` wants it; None becomes a placeholder that keeps the type for overrides."""
  if isinstance(value, str) and value == 'None' and types.NoneType in _alternatives(hint):
    value = None
  value = _convert(value, hint)
  if _fits(value, hint):
    return config_dict.placeholder(_plain(hint)) if value is None else value
  literals = [c for o in _alternatives(hint) if typing.get_origin(o) is typing.Literal for c in typing.get_args(o)]
  if literals and isinstance(value, str):
    raise InputError(path, f'unknown value {value!r}', fix=nearest(value, literals))
  raise InputError(path, expected=describe(hint), found=_describe_value(value))


def describe(hint: Any) -> str:
  """Return a type hint in words: ``int or None``, ``tuple of str``, ``'a' or 'b'``."""
  if typing.get_origin(hint) is typing.Literal:
    return ' or '.join(map(repr, typing.get_args(hint)))
  if typing.get_origin(hint) is tuple:
    args = typing.get_args(hint)
    return f'tuple of {describe(args[0])}' if args[-1] is ... else f'({", ".join(map(describe, args))})'
  if len(_alternatives(hint)) > 1:
    return ' or '.join(map(describe, _alternatives(hint)))
  return 'None' if hint is types.NoneType else getattr(hint, '__name__', str(hint))


def _alternatives(hint: Any) -> tuple[Any, ...]:
  union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  return typing.get_args(hint) if union else (hint,)


def _convert(value: Any, hint: Any) -> Any:
  """Return ``value``, also inside tuples, with lists as tuples, and ints as floats where no int is wanted."""
  options = _alternatives(hint)
  if isinstance(value, numbers.Number) and hasattr(value, 'item'):  # NumPy's
    value = value.item()
  if isinstance(value, os.PathLike) and str in options:
    value = os.fspath(value)
  if type(value) is int and float in options and int not in options:
    return float(value)
  if not isinstance(value, (list, tuple)):
    return value
  wanted = next((_of_elements(o, len(value)) for o in options if typing.get_origin(o) is tuple), None)
  return tuple(map(_convert, value, wanted or [object] * len(value)))


def _fits(value: Any, hint: Any) -> bool:
  if len(_alternatives(hint)) > 1:
    return any(_fits(value, option) for option in _alternatives(hint))
  if typing.get_origin(hint) is typing.Literal:
    return isinstance(value, str) and value in typing.get_args(hint)
  if typing.get_origin(hint) is tuple:
    wanted = _of_elements(hint, len(value)) if isinstance(value, tuple) else None
    return wanted is not None and all(map(_fits, value, wanted))
  return hint is object or type(value) is hint


def _of_elements(hint: Any, size: int) -> Sequence[Any] | None:
  """Return the hint of each element of a tuple of ``size``; None where ``tuple[A, B]`` has another size."""
  args = typing.get_args(hint)
  if args[-1] is ...:
    return [args[0]] * size
  return args if len(args) == size else None


def _plain(hint: Any) -> type:
  """Return the class that a value of ``hint`` has when it is not None."""
  option = next(o for o in _alternatives(hint) if o is not types.NoneType)
  if typing.get_origin(option) is typing.Literal:
    return str
  return typing.get_origin(option) or option
