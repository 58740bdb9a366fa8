"""The config: each section is the keyword arguments of one function, so a signature is the schema.

Signatures are read from the source, not by importing it: a misspelt field is found before JAX is loaded.
"""

import ast
import functools
import json
import pathlib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_dict, config_flags

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
  for section in sections:
    if section not in SECTIONS:
      raise InputError(f'{section}: unknown config section{nearest(section, SECTIONS)}')
  whole = {section: _fill(section, sections.get(section, {})) for section in SECTIONS}
  return config_dict.ConfigDict(whole).lock()


def complete(config: Mapping[str, Any]) -> config_dict.ConfigDict:
  """Return ``make(**config)`` of a dict or ``ConfigDict``, which may be partial. Raises as ``make`` does."""
  return make(**to_dict(config))


def to_dict(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return ``config`` as plain nested dicts."""
  if isinstance(config, config_dict.ConfigDict):
    return config.to_dict()
  return {section: dict(fields) for section, fields in config.items()}


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


def check_arguments(argv: Sequence[str]) -> None:
  """Check the ``--config`` file and the names of the ``--config.section.field`` overrides in ``argv``.

  Raises:
    InputError: the file is missing, or a section or field is unknown.
  """
  for argument, following in zip(argv, [*argv[1:], ''], strict=True):
    name, _, value = argument.removeprefix('-').removeprefix('-').partition('=')
    if name == 'config':
      _check_file(value or following)
    elif name.startswith('config.'):
      check_path(name.removeprefix('config.'))


def load(path: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
  """Return the whole config of the file at ``path``, with ``overrides`` such as ``'--config.optim.lr=0.2'``.

  Raises:
    InputError: the file or an override cannot be used.
  """
  argv = ['jaxres', f'--config={path}', *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  parse_flags(argv, ['config'], values)
  return complete(values.config)


def parse_flags(argv: Sequence[str], required: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  """Parse ``argv`` into ``values``, which loads the config file, and see that ``required`` flags are there.

  Raises:
    InputError: the command line or the config file cannot be used.
  """
  check_arguments(argv)
  argv = [_with_home(word, before) for word, before in zip(argv, ['', *argv], strict=False)]
  try:
    rest = values(argv)
  except Exception as error:  # whatever the user's file raises; ml_collections wraps some of it
    raise _explain(error) from error
  for name in required:
    if not values[name].value:
      raise InputError(f'--{name} is missing: python main.py --config configs/digits.py --workdir runs/digits')
  if len(rest) > 1:
    raise InputError(f'unexpected argument {rest[1]!r}; fields are given as --config.section.field=value')


def _explain(error: BaseException) -> InputError:
  chain = [error]
  while chain[-1].__context__ is not None:
    chain.append(chain[-1].__context__)
  if isinstance(chain[-1], InputError):
    return chain[-1]
  override = re.match(r'flag --config\.([\w.]+)=(.*?): ', str(error))
  if override and len(chain) > 1:
    section, _, field = override[1].partition('.')
    return InputError(
      f'--config.{override[1]}: expected {describe(schema(section)[field].hint)}, found {override[2]!r}'
    )
  if isinstance(chain[-1], AttributeError) and "'get_config'" in str(chain[-1]):
    return InputError('--config: the file has no function get_config(); it returns jaxres.config.make(...)')
  if isinstance(chain[-1], KeyError) and chain[-1].args[0] in SECTIONS:
    found = f'get_config() returns a dict without the section {chain[-1].args[0]!r}'
    return InputError(f'--config: {found}, which cannot be overridden then; return jaxres.config.make(...)')
  if isinstance(error, flags.Error) and 'parsing config file' not in str(error):
    return InputError(str(error))
  return InputError(f'--config: the file fails to load: {type(chain[-1]).__name__}: {chain[-1]}')


def check_path(path: str) -> None:
  """Raise InputError where ``path``, such as ``'optim.lr'``, is no field of the config."""
  section, _, field = path.partition('.')
  if section not in SECTIONS:
    raise InputError(f'--config.{path}: unknown config section {section!r}{nearest(section, SECTIONS)}')
  if field not in schema(section):
    where = f'--config.{path}: unknown field {field!r} of section {section!r}'
    raise InputError(where + nearest(field, schema(section)))


def _with_home(word: str, before: str) -> str:
  """Return a word of the command line, the ``~`` of a config's path replaced: no shell does it behind ``=``."""
  flag, equals, path = word.partition('=')
  if equals and path.startswith('~') and flag in ('--config', '-config'):
    return f'{flag}={user_path(path, "--config")}'
  return str(user_path(word, '--config')) if word.startswith('~') and before in ('--config', '-config') else word


def _check_file(name: str) -> None:
  path = user_path(name if '://' in name else name.partition(':')[0], '--config')
  if not path.exists():
    siblings = path.parent.glob('*.py') if path.parent.is_dir() else []
    known = nearest(path.name, [p.name for p in siblings])
    raise InputError(f'--config: no such file: {path}{known or "; give the path of a config, see configs/"}')
  try:
    size = check_regular(path, MAX_TEXT_BYTES)
  except OSError as error:
    raise InputError(f'--config: {path}: {error.strerror}') from None
  if not size:
    raise InputError(f'--config: {path}: the file is empty; expected get_config(), see configs/')


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


def _fill(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
  fields = schema(section)
  for name in given:
    if name not in fields:
      raise InputError(f'{section}.{name}: unknown field{nearest(name, fields)}')
  values = {name: given.get(name, field.default) for name, field in fields.items()}
  return {name: _coerce(f'{section}.{name}', values[name], f.hint) for name, f in fields.items()}


def _coerce(path: str, value: Any, hint: Any) -> Any:
  """Return ``value`` as ``hint`` wants it; None becomes a placeholder that keeps the type for overrides."""
  if value == 'None' and types.NoneType in _alternatives(hint):
    value = None
  value = _convert(value, hint)
  if _fits(value, hint):
    return config_dict.placeholder(_plain(hint)) if value is None else value
  literals = [c for o in _alternatives(hint) if typing.get_origin(o) is typing.Literal for c in typing.get_args(o)]
  if literals and isinstance(value, str):
    raise InputError(f'{path}: unknown value {value!r}{nearest(value, literals)}')
  raise InputError(f'{path}: expected {describe(hint)}, found {value!r} ({type(value).__name__})')


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
