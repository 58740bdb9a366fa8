"""The config: each section is the keyword arguments of one function, so a signature is the schema.

Signatures are read from the source, not by importing it: a misspelt field is found before JAX is loaded.
"""

import ast
import functools
import json
import numbers
import os
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_dict, config_flags

from jaxres import hints
from jaxres.errors import InputError, nearest
from jaxres.paths import MAX_TEXT_BYTES, check_regular, user_path

SECTIONS = {
  'model': ('models/__init__.py', 'create'),
  'init': ('pretrained.py', 'make_init'),
  'data': ('data/__init__.py', 'load'),
  'augment': ('data/augment/__init__.py', 'make'),
  'optim': ('optim.py', 'make'),
  'train': ('train.py', 'fit'),
  'tta': ('evaluate.py', 'make_views'),
  'checkpoint': ('checkpoint.py', 'open'),
}
USAGE = 'python main.py --config configs/digits.py --workdir runs/digits'
RECIPES = 'configs'  # the directory of config files that are known by their names, here or beside the package
WRAPPED = 'parsing config file'  # in the message of what ml_collections makes of any error of the file
MOST = 8  # that a message names, of several


class Field(NamedTuple):
  """One field of a section: a type hint and the default."""

  hint: Any
  default: Any


def make(**sections: Mapping[str, Any]) -> config_dict.ConfigDict:
  """Return a whole, checked config: the signatures' defaults, overridden by ``sections``.

  Args:
    **sections: fields by section, such as ``model=dict(name='resnet18')``.

  Returns:
    A locked, type-safe ``ConfigDict`` with every field of every section.

  Raises:
    InputError: a section, field or choice is unknown, or a value has the wrong type.
  """
  problems = [
    f'{section}: unknown config section{nearest(section, SECTIONS)}' for section in sections if section not in SECTIONS
  ]
  given = to_dict(sections)
  whole = {section: _fill(section, given.get(section, {}), problems) for section in SECTIONS}
  if problems:
    raise InputError(bounded(problems))
  return config_dict.ConfigDict(whole).lock()


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
      'jaxres.config.load(path) reads a file' if isinstance(config, str | os.PathLike) else "such as {'optim': {...}}"
    )
    raise InputError(f'config: expected a dict of sections, found {_shown(config)}; {fix}')
  for section, fields in config.items():
    if not isinstance(section, str):
      raise InputError(f'config: expected names of sections, found {_shown(section)}; known: {", ".join(SECTIONS)}')
    if section in SECTIONS and not isinstance(fields, Mapping):
      example = next(iter(schema(section)))
      expected = f'expected a dict of fields, such as dict({example}=...)'
      raise InputError(f'{section}: {expected}, found {_shown(fields)}; known: {", ".join(schema(section))}')
  return {section: dict(fields) if isinstance(fields, Mapping) else fields for section, fields in config.items()}


def check_types(section: str, given: Mapping[str, Any]) -> None:
  """Raise InputError where an argument of a section's function is not of the type that its signature says.

  It is called by the functions themselves, which are called from Python too; arguments that the section has no field
  for are not looked at, nor are unknown words for one of several, which the functions know better.
  """
  fields = schema(section)
  for name in given.keys() & fields.keys():
    is_word = isinstance(given[name], str) and any(
      typing.get_origin(option) is typing.Literal for option in _alternatives(fields[name].hint)
    )
    if not is_word and not _fits(_convert(given[name], fields[name].hint), fields[name].hint):
      expected = describe(fields[name].hint)
      raise InputError(f'{section}.{name}: expected {expected}, found {_shown(given[name])}')


def bounded(lines: Sequence[str], separator: str = '; ') -> str:
  """Return the first ``MOST`` of ``lines`` as one, and how many more there are."""
  more = len(lines) - MOST
  return separator.join(lines[:MOST]) + (f'{separator}and {more} more' if more > 0 else '')


def _shown(value: Any) -> str:
  """Return a value and its type, no longer than a line allows."""
  kind = type(value)
  plain = value is None or isinstance(value, str | numbers.Number | list | tuple | dict | os.PathLike)
  return f'{value!r:.80} ({kind.__name__})' if plain else f'a {kind.__module__.partition(".")[0]} {kind.__name__}'


def to_json(config: Mapping[str, Any]) -> str:
  """Return ``config`` as indented JSON with sorted keys."""
  return json.dumps(to_dict(config), indent=2, sort_keys=True) + '\n'


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Return ``{'section.field': (old, new)}`` of every field whose JSON differs between two configs."""
  flat = [
    {f'{s}.{f}': v for s, fields in json.loads(to_json(c)).items() for f, v in fields.items()} for c in (old, new)
  ]
  paths = sorted(flat[0].keys() | flat[1].keys())
  return {p: (flat[0].get(p), flat[1].get(p)) for p in paths if flat[0].get(p) != flat[1].get(p)}


def describe_changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
  """Return ``differences`` in words, the first of them where there are many."""
  return bounded(
    [
      f'{path} was {json.dumps(old):.100} there and is {json.dumps(new):.100} now'
      for path, (old, new) in changed.items()
    ],
    ', ',
  )


def check_arguments(argv: Sequence[str]) -> list[str]:
  """Check the names of the ``--config.section.field`` overrides in ``argv``, and the ``--config`` file.

  Returns:
    ``argv`` with the path of the config file as ``find_file`` says it.

  Raises:
    InputError: the file is missing or of another kind, or a section or field is unknown.
  """
  checked, problems = list(argv), []
  for at, argument in enumerate(argv):
    name, equals, value = argument.removeprefix('-').removeprefix('-').partition('=')
    if not argument.startswith('-'):
      continue
    if name == 'config' and equals:
      checked[at] = f'--config={find_file(value)}'
    elif name == 'config' and at + 1 < len(argv):
      checked[at + 1] = find_file(argv[at + 1])
    elif name.startswith('config.'):
      try:
        check_path(name.removeprefix('config.'), value)
      except InputError as error:
        problems.append(str(error))
  if problems:
    raise InputError(bounded(problems))
  return checked


def load(path: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
  """Return the whole config of the file at ``path``, with ``overrides`` such as ``'--config.optim.lr=0.2'``.

  Raises:
    InputError: the file or an override cannot be used.
  """
  if not isinstance(path, str | os.PathLike):
    raise InputError(f'config: expected the path of a file, found {_shown(path)}')
  argv = ['jaxres', f'--config={os.fspath(path)}', *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  parse_flags(argv, ['config'], values)
  return complete(values.config)


def get_config(path: str) -> config_dict.ConfigDict:
  """Return the config that a run wrote: ``--config=RUN/config.json`` is this file with that path as its argument.

  Raises:
    InputError: it cannot be read, or is no config.
  """
  try:
    return complete(json.loads(pathlib.Path(path).read_text('utf-8')))
  except (OSError, ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise InputError(f'--config: {path}: {error}') from None
    raise InputError(f'--config: {path}: not the config.json of a run: {error}') from None


def parse_flags(argv: Sequence[str], required: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  """Parse ``argv`` into ``values``, which loads the config file, and see that ``required`` flags are there.

  Raises:
    InputError: the command line or the config file cannot be used.
  """
  argv = check_arguments(argv)
  sys.modules.pop('config_config', None)  # ml_collections loads a file into the module of the file before it
  try:
    rest = values(argv)
  except flags.UnrecognizedFlagError as error:
    raise InputError(_unknown_flag(error.flagname, argv, _own_flags(values))) from None
  except Exception as error:  # whatever the user's file raises; ml_collections wraps some of it
    raise _explain(error, argv) from error
  if len(rest) > 1:
    name, equals, value = rest[1].partition('=')
    hint = hints.sentence(hints.find(name, all_fields(), _own_flags(values)), value) if equals else ''
    raise InputError(f'unexpected argument {rest[1]!r}{hint or "; fields are given as --config.section.field=value"}')
  for name in required:
    if not values[name].value and not (name == 'config' and values[name].present):
      raise InputError(f'--{name} is missing: {USAGE}')
  if isinstance(values.config, Mapping | config_dict.ConfigDict):
    return
  raise InputError(f'--config: get_config() returns {_shown(values.config)}; return jaxres.config.make(...)')


def all_fields() -> list[str]:
  """Return every field of the config, such as ``'train.epochs'``."""
  return [f'{section}.{field}' for section in SECTIONS for field in schema(section)]


def unknown_flag(word: str, following: str, known: Sequence[str], fields: Sequence[str]) -> str:
  """Return what an unknown flag may mean, as the end of a sentence.

  Args:
    word: the argument, such as ``'--epochs'`` or ``'--epochs=3'``.
    following: the argument behind it, its value where it has none of its own.
    known: the flags that there are, without dashes.
    fields: of the config, that can be set there.
  """
  name, _, value = word.lstrip('-').partition('=')
  value = value or ('' if following.startswith('-') else following)
  return hints.sentence(hints.find(name, fields, known), value)


def _unknown_flag(name: str, argv: Sequence[str], known: Sequence[str]) -> str:
  words = [*argv, '']
  at = next(i for i, word in enumerate(words) if word.lstrip('-').partition('=')[0] == name and word.startswith('-'))
  hint = unknown_flag(words[at], words[at + 1], known, all_fields())
  there = f'; there are {", ".join(f"--{flag}" for flag in known)}, and a --config.section.field=value for each field'
  return f"unknown flag '--{name}'{hint or there}"


def _own_flags(values: flags.FlagValues) -> list[str]:
  """Return the flags of the program itself, not those of absl and the like."""
  foreign = {'absl', 'ml_collections', 'etils', 'orbax', 'jax'}
  modules = values.flags_by_module_dict()
  return sorted(
    flag.name
    for module, own in modules.items()
    for flag in own
    if module.partition('.')[0] not in foreign and '.' not in flag.name
  )


def _explain(error: BaseException, argv: Sequence[str]) -> InputError:
  chain = [error]
  while chain[-1].__context__ is not None:
    chain.append(chain[-1].__context__)
  last = chain[-1]
  explained = [each for each in chain if isinstance(each, InputError) and WRAPPED not in str(each)]
  if explained:
    return explained[0]
  override = re.match(r'flag --config\.([\w.]+)=(.*?): ', str(error), re.DOTALL)
  if override and len(chain) > 1:
    section, _, field = override[1].partition('.')
    return InputError(
      f'--config.{override[1]}: expected {describe(schema(section)[field].hint)}, found {override[2]!r}'
    )
  if isinstance(last, AttributeError) and "'get_config'" in str(last):
    return InputError('--config: the file has no function get_config(); it returns jaxres.config.make(...)')
  if isinstance(last, KeyError) and last.args[0] in SECTIONS:
    found = f'get_config() returns a dict without the section {last.args[0]!r}'
    return InputError(f'--config: {found}, which cannot be overridden then; return jaxres.config.make(...)')
  if isinstance(error, flags.Error) and WRAPPED not in str(error):
    return InputError(str(error))
  return InputError(f'--config: the file fails to load{_line(last, argv)}: {type(last).__name__}: {last}')


def _line(error: BaseException, argv: Sequence[str]) -> str:
  """Return where in the config file an error was raised; nothing where it is a syntax error, which says it itself."""
  names = {word.removeprefix('--config=').partition(':')[0] for word in argv}
  frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
  return f', line {frames[-1].lineno}' if frames and not isinstance(error, SyntaxError) else ''


def check_path(path: str, value: str = '') -> None:
  """Raise InputError where ``path``, such as ``'optim.lr'``, is no field of the config; ``value`` is for the hint."""
  section, _, field = path.partition('.')
  if section not in SECTIONS:
    hint = nearest(section, SECTIONS) if field else hints.sentence(hints.find(path, all_fields()), value)
    raise InputError(f'--config.{path}: unknown config section {section!r}{hint or nearest(section, SECTIONS)}')
  if not field:
    raise InputError(f'--config.{path}: a section; expected a field of it: {", ".join(schema(section))}')
  if field not in schema(section):
    where = f'--config.{path}: unknown field {field!r} of section {section!r}'
    elsewhere = [f for f in all_fields() if f.partition('.')[2] == field]  # in another section
    raise InputError(where + (hints.sentence(elsewhere, value) or nearest(field, schema(section))))


def find_file(name: str) -> str:
  """Return the path of a config file that a person names, and behind a colon the argument of its ``get_config``.

  Args:
    name: a path; the name of a file in ``configs/``, such as ``'digits'``; or the ``config.json`` of a run.

  Raises:
    InputError: there is no such file, or it is of another kind.
  """
  if not name or name.startswith('--'):
    raise InputError(f'--config: no file is named: {USAGE}')
  place, colon, argument = (name, '', '') if '://' in name else name.partition(':')
  if colon and os.path.exists(name):
    raise InputError(f'--config: {name}: a path with a colon, which ends the path of a config here; rename the file')
  path = user_path(place, '--config')
  if path.is_dir():
    inside = [path / 'config.json'] if (path / 'config.json').is_file() else sorted(path.glob('*.py'))
    found = f'; there is {bounded([str(file) for file in inside], ", ")}' if inside else ''
    raise InputError(f'--config: {place} is a directory; expected a file{found}')
  if not path.exists() and path.with_name(f'{path.name}.py').is_file():
    path = path.with_name(f'{path.name}.py')
  if not path.exists():
    known = _recipes()
    by_name = known.get(path.name.removesuffix('.py')) if path.name == place else None
    if by_name is None:
      siblings = [
        file.name for file in sorted(path.parent.glob('*.py')) if 'get_config' in file.read_text('utf-8', 'replace')
      ]
      hint = nearest(path.name, siblings if path.name != place else [*siblings, *known])
      raise InputError(f'--config: no such file: {place}{hint or "; give the path of a config, see configs/"}')
    path = by_name
  _check_size(path)
  if path.suffix == '.json':
    return f'{pathlib.Path(__file__)}:{path}'
  if path.suffix not in ('.py', ''):
    raise InputError(
      f'--config: {place}: expected a Python file, such as configs/digits.py, or the config.json of a run'
    )
  return f'{path}{colon}{argument}'


def _check_size(path: pathlib.Path) -> None:
  """Raise InputError where a config is no regular file, or empty."""
  try:
    size = check_regular(path, MAX_TEXT_BYTES)
  except OSError as error:
    raise InputError(f'--config: {path}: {error.strerror}') from None
  if not size:
    raise InputError(f'--config: {path}: the file is empty; expected get_config(), see configs/')


def _recipes() -> dict[str, pathlib.Path]:
  """Return the config files that are known by their names: of ``configs/`` here, or beside the package."""
  places = (pathlib.Path(__file__).parents[1] / RECIPES, pathlib.Path(RECIPES))
  return {file.stem: file for place in places for file in sorted(place.glob('*.py'))}


@functools.cache
def schema(section: str) -> Mapping[str, Field]:
  """Return the fields of ``section``: the parameters of its function that are not positional-only."""
  file, function = SECTIONS[section]
  tree = ast.parse((pathlib.Path(__file__).parent / file).read_text())
  node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
  a = node.args
  pairs = [*zip(a.args[::-1], a.defaults[::-1], strict=False)][::-1]
  pairs += [(arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True) if default]
  return {arg.arg: Field(_hint(arg), ast.literal_eval(default)) for arg, default in pairs}


def _hint(arg: ast.arg) -> Any:
  return eval(ast.unparse(arg.annotation or ast.Name('object')), {'Literal': typing.Literal})


def _fill(section: str, given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Return the whole section; what is wrong with it is added to ``problems``, field by field."""
  fields = schema(section)
  problems += [f'{section}.{name}: unknown field{nearest(name, fields)}' for name in given if name not in fields]
  whole = {}
  for name, field in fields.items():
    try:
      whole[name] = _coerce(f'{section}.{name}', given.get(name, field.default), field.hint)
    except InputError as error:
      problems.append(str(error))
  return whole


def _coerce(path: str, value: Any, hint: Any) -> Any:
  """Return ``value`` as ``hint`` wants it; None becomes a placeholder that keeps the type for overrides."""
  if isinstance(value, str) and value == 'None' and types.NoneType in _alternatives(hint):
    value = None
  value = _convert(value, hint)
  if _fits(value, hint):
    return config_dict.placeholder(_plain(hint)) if value is None else value
  literals = [c for o in _alternatives(hint) if typing.get_origin(o) is typing.Literal for c in typing.get_args(o)]
  if literals and isinstance(value, str):
    raise InputError(f'{path}: unknown value {value!r}{nearest(value, literals)}')
  raise InputError(f'{path}: expected {describe(hint)}, found {_shown(value)}')


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
    return value in typing.get_args(hint)
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
