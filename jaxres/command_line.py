"""The command line of a training: its config file, the overrides, and hints."""

import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import config_dict, config_flags

from jaxres import config as config_lib
from jaxres import hints
from jaxres.errors import InputError, nearest
from jaxres.paths import MAX_TEXT_BYTES, check_regular, read_regular, user_path

USAGE = 'python main.py --config configs/digits.py --workdir runs/digits'
RECIPES = 'configs'  # the directory of config files that are known by their names, here or beside the package


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
    raise InputError(config_lib.join_limited(problems))
  return checked


def load(path: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
  """Return the complete config of the file at ``path``, with ``overrides`` such as ``'--config.optim.lr=0.2'``.

  Args:
    path: of a config file, as ``find_file`` takes it.
    overrides: words of the command line.

  Raises:
    InputError: the file or an override cannot be used.
  """
  if not isinstance(path, str | os.PathLike):
    raise InputError(f'config: expected the path of a file, found {config_lib._describe_value(path)}')
  argv = ['jaxres', f'--config={os.fspath(path)}', *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  parse_flags(argv, ['config'], values)
  return config_lib.complete(values.config)


def get_config(path: str) -> config_dict.ConfigDict:
  """Return the config that a run wrote: ``--config=RUN/config.json`` is this file with that path as its argument.

  Raises:
    InputError: it cannot be read, or is no config.
  """
  try:
    return config_lib.complete(json.loads(pathlib.Path(path).read_text('utf-8')))
  except (OSError, ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise InputError(f'--config: {path}: {error}') from None
    raise InputError(f'--config: {path}: not the config.json of a run: {error}') from None


def parse_flags(argv: Sequence[str], required: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
  """Parse ``argv`` into ``values``, which loads the config file, and check that ``required`` flags are set.

  Args:
    argv: the command line, with the name of the program.
    required: names of flags.
    values: the flags that are defined.

  Raises:
    InputError: the command line or the config file cannot be used.
  """
  argv = check_arguments(argv)
  sys.modules.pop('config_config', None)  # ml_collections loads a file into the module of the file before it
  try:
    rest = values(argv)
  except flags.UnrecognizedFlagError as error:
    raise InputError(_unknown_flag(error.flagname, argv, _program_flags(values))) from None
  except Exception as error:  # whatever the user's file raises; ml_collections wraps some of it
    raise _explain(error, argv) from error
  if len(rest) > 1:
    name, equals, value = rest[1].partition('=')
    hint = hints.sentence(hints.find(name, all_fields(), _program_flags(values)), value) if equals else ''
    raise InputError(f'unexpected argument {rest[1]!r}{hint or "; fields are given as --config.section.field=value"}')
  for name in required:
    if not values[name].value and not (name == 'config' and values[name].present):
      raise InputError(f'--{name} is missing: {USAGE}')
  if isinstance(values.config, Mapping | config_dict.ConfigDict):
    return
  raise InputError(
    f'--config: get_config() returns {config_lib._describe_value(values.config)}; return jaxres.config.make(...)'
  )


def all_fields() -> list[str]:
  """Return every field of the config, such as ``'train.epochs'``."""
  return [f'{section}.{field}' for section in config_lib.SECTIONS for field in config_lib.schema(section)]


def unknown_flag(word: str, following: str, known: Sequence[str], fields: Sequence[str]) -> str:
  """Return what an unknown flag may mean, as the end of a sentence.

  Args:
    word: the argument, such as ``'--epochs'`` or ``'--epochs=3'``.
    following: the argument behind it, its value where it has none after a "=".
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


def _program_flags(values: flags.FlagValues) -> list[str]:
  """Return the flags of the program itself, not those of absl and the like."""
  foreign = {'absl', 'ml_collections', 'etils', 'orbax', 'jax'}
  modules = values.flags_by_module_dict()
  return sorted(
    flag.name
    for module, module_flags in modules.items()
    for flag in module_flags
    if module.partition('.')[0] not in foreign and '.' not in flag.name
  )


def _explain(error: BaseException, argv: Sequence[str]) -> InputError:
  chain = [error]
  while chain[-1].__context__ is not None:
    chain.append(chain[-1].__context__)
  last = chain[-1]
  explained = [each for each in chain if isinstance(each, InputError) and config_lib.WRAPPED not in str(each)]
  if explained:
    return explained[0]
  override = re.match(r'flag --config\.([\w.]+)=(.*?): ', str(error), re.DOTALL)
  if override and len(chain) > 1:
    section, _, field = override[1].partition('.')
    expected = config_lib.describe(config_lib.schema(section)[field].hint)
    return InputError(f'--config.{override[1]}: expected {expected}, found {override[2]!r}')
  if isinstance(last, AttributeError) and "'get_config'" in str(last):
    return InputError('--config: the file has no function get_config(); it returns jaxres.config.make(...)')
  if isinstance(last, KeyError) and last.args[0] in config_lib.SECTIONS:
    missing = f'get_config() returns a dict without the section {last.args[0]!r}'
    return InputError(f'--config: {missing}, which cannot be overridden then; return jaxres.config.make(...)')
  if isinstance(error, flags.Error) and config_lib.WRAPPED not in str(error):
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
  if section not in config_lib.SECTIONS:
    hint = nearest(section, config_lib.SECTIONS) if field else hints.sentence(hints.find(path, all_fields()), value)
    raise InputError(
      f'--config.{path}: unknown config section {section!r}{hint or nearest(section, config_lib.SECTIONS)}'
    )
  if not field:
    raise InputError(f'--config.{path}: a section; expected a field of it: {", ".join(config_lib.schema(section))}')
  if field not in config_lib.schema(section):
    where = f'--config.{path}: unknown field {field!r} of section {section!r}'
    elsewhere = [f for f in all_fields() if f.partition('.')[2] == field]  # in another section
    raise InputError(where + (hints.sentence(elsewhere, value) or nearest(field, config_lib.schema(section))))


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
    instead = f'; there is {config_lib.join_limited([str(file) for file in inside], ", ")}' if inside else ''
    raise InputError(f'--config: {place} is a directory; expected a file{instead}')
  if not path.exists() and path.with_name(f'{path.name}.py').is_file():
    path = path.with_name(f'{path.name}.py')
  if not path.exists():
    known = _recipes()
    by_name = known.get(path.name.removesuffix('.py')) if path.name == place else None
    if by_name is None:
      siblings = [file.name for file in sorted(path.parent.glob('*.py')) if _is_config(file)]
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


def _is_config(path: pathlib.Path) -> bool:
  """Return whether ``path`` is a file that defines a config, and not a link to nothing or a device."""
  try:
    return b'get_config' in read_regular(path, MAX_TEXT_BYTES)
  except OSError:
    return False


def _check_size(path: pathlib.Path) -> None:
  """Raise InputError where a config is no regular file, may not be read, or is empty."""
  try:
    size = check_regular(path, MAX_TEXT_BYTES)
    path.open('rb').close()
  except OSError as error:
    raise InputError(f'--config: {path}: {error.strerror}') from None
  if not size:
    raise InputError(f'--config: {path}: the file is empty; expected get_config(), see configs/')


def _recipes() -> dict[str, pathlib.Path]:
  """Return the config files that are known by their names: of ``configs/`` here, or beside the package."""
  places = (pathlib.Path(__file__).parents[1] / RECIPES, pathlib.Path(RECIPES))
  return {file.stem: file for place in places for file in sorted(place.glob('*.py'))}
