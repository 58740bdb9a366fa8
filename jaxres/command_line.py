"""The words of a command line that make a config: its file, the overrides, and hints."""

import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from jaxres import config as config_lib
from jaxres import hints
from jaxres.errors import InputError, nearest
from jaxres.paths import MAX_TEXT_BYTES, check_regular, read_regular, user_path

USAGE = 'jaxres train --config digits'
RECIPES = 'configs'  # the directory of config files that are known by their names: here, installed, in a checkout
AGAIN = '_again'  # ends the name of a run that repeats another
# By the flag of `jaxres train`: the field that it sets.
SHORT_FORMS = {
  'epochs': 'train.epochs',
  'lr': 'optim.lr',
  'batch-size': 'data.batch_size',
  'image-size': 'data.image_size',
  'model': 'model.name',
}


def check_overrides(overrides: Sequence[str]) -> None:
  """Raise InputError where a word such as ``'--config.optim.lr=0.2'`` names no field."""
  problems = []
  for word in overrides:
    path, _, value = word.removeprefix('--config.').partition('=')
    try:
      check_path(path, value)
    except InputError as error:
      problems.append(str(error))
  if problems:
    raise InputError(config_lib.join_limited(problems))


def join_words(words: Sequence[str]) -> list[str]:
  """Return ``words`` with ``--config.x.y value`` as one, ``--config.x.y=value``, where the field takes a value."""
  joined: list[str] = []
  for word in words:
    field = joined[-1].removeprefix('--config.') if joined and joined[-1].startswith('--config.') else ''
    section, _, name = field.partition('.')
    known = config_lib.schema(section).get(name) if section in config_lib.SECTIONS else None
    takes_value = '=' not in field and bool(field) and (known is None or known.hint is not bool)
    if takes_value and not word.startswith('--'):
      joined[-1] += f'={word}'
    else:
      joined.append(word)
  return joined


def name_of(config: str) -> str:
  """Return what a run of ``config``, as of ``find_file``, is called: as its file, or as the run that it repeats."""
  file, _, argument = find_file(config).partition(':')
  if file == __file__:
    return (pathlib.Path(argument).absolute().parent.name or 'run') + AGAIN
  return pathlib.Path(file).stem


def load(path: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
  """Return the complete config of the file at ``path``, with ``overrides`` such as ``'--config.optim.lr=0.2'``.

  Args:
    path: of a config file, as ``find_file`` takes it.
    overrides: words of the command line.

  Raises:
    InputError: the file or an override cannot be used.
  """
  if not isinstance(path, str | os.PathLike):
    raise InputError('config', expected='the path of a file', found=config_lib._describe_value(path))
  check_overrides(overrides)
  argv = ['jaxres', f'--config={find_file(os.fspath(path))}', *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  _parse_flags(argv, values)
  return config_lib.complete(values.config)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
  """Return the fields that ``overrides`` set and their values: ``{'optim.lr': 0.2}``. Raises as ``override``."""
  sections = config_lib.to_dict(override({}, overrides))
  paths = [word.removeprefix('--config.').partition('=')[0] for word in overrides]
  return {path: sections[path.partition('.')[0]][path.partition('.')[2]] for path in paths}


def override(config: Mapping[str, Any], overrides: Sequence[str]) -> config_dict.ConfigDict:
  """Return ``config``, which may be partial, with ``overrides`` such as ``'--config.optim.lr=0.2'``.

  Raises:
    InputError: an override names no field, or its value is of another type.
  """
  check_overrides(overrides)
  values, argv = flags.FlagValues(), ['jaxres', *overrides]
  config_flags.DEFINE_config_dict('config', config_lib.complete(config), flag_values=values, sys_argv=argv)
  _parse_flags(argv, values)
  return config_lib.complete(values.config)


def words_of(config: Mapping[str, Any]) -> list[str]:
  """Return the words of a command that make ``config``: a recipe by its name, and what differs from it.

  The recipe is that of ``recipes`` which leaves the fewest differences.
  """
  wanted = config_lib.complete(config)
  changes = {name: config_lib.differences(load(name), wanted) for name in recipes()}
  usable = [name for name, fields in changes.items() if all(new is not None for _, new in fields.values())]
  name = min(usable, key=lambda name: (len(changes[name]), name))  # no word makes None of a value
  values = config_lib.to_dict(wanted)
  fields = [(path, values[path.partition('.')[0]][path.partition('.')[2]]) for path in changes[name]]
  return ['--config', name, *(f'--config.{path}={value}' for path, value in fields)]


def get_config(path: str) -> config_dict.ConfigDict:
  """Return the config that a run wrote: ``--config=RUN/config.json`` is this file with that path as its argument.

  Raises:
    InputError: it cannot be read, or is no config.
  """
  try:
    return config_lib.complete(json.loads(pathlib.Path(path).read_text('utf-8')))
  except (OSError, ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise InputError('--config', f'{path}: {error}') from None
    raise InputError('--config', f'{path}: not the config.json of a run: {error}') from None


def _parse_flags(argv: Sequence[str], values: flags.FlagValues) -> None:
  """Parse ``argv`` into ``values``, which loads the config file.

  Raises:
    InputError: an override or the config file cannot be used.
  """
  sys.modules.pop('config_config', None)  # ml_collections loads a file into the module of the file before it
  try:
    values(argv)
  except Exception as error:  # whatever the user's file raises; ml_collections wraps some of it
    raise _explain(error, argv) from error
  if not isinstance(values.config, Mapping | config_dict.ConfigDict):
    value = config_lib._describe_value(values.config)
    raise InputError('--config', f'get_config() returns {value}', fix='return jaxres.config.make(...)')


def all_fields() -> list[str]:
  """Return every field of the config, such as ``'train.epochs'``."""
  return [f'{section}.{field}' for section in config_lib.SECTIONS for field in config_lib.schema(section)]


def unknown_flag(word: str, following: str, known: Sequence[str], fields: Sequence[str]) -> str:
  """Return what an unknown flag may mean; nothing where that is not known.

  Args:
    word: the argument, such as ``'--epochs'`` or ``'--epochs=3'``.
    following: the argument behind it, its value where it has none after a "=".
    known: the flags that there are, without dashes.
    fields: of the config, that can be set there.
  """
  name, _, value = word.lstrip('-').partition('=')
  value = value or ('' if following.startswith('-') else following)
  return hints.sentence(hints.find(name, fields, known), value)


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
    return InputError(f'--config.{override[1]}', expected=expected, found=repr(override[2]))
  if isinstance(last, AttributeError) and "'get_config'" in str(last):
    return InputError('--config', 'the file has no function get_config()', fix='it returns jaxres.config.make(...)')
  if isinstance(last, KeyError) and last.args[0] in config_lib.SECTIONS:
    missing = f'get_config() returns a dict without the section {last.args[0]!r}'
    return InputError('--config', f'{missing}, which cannot be overridden then', fix='return jaxres.config.make(...)')
  if isinstance(error, flags.Error) and config_lib.WRAPPED not in str(error):
    return InputError(str(error))
  return InputError('--config', f'the file fails to load{_line(last, argv)}: {type(last).__name__}: {last}')


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
    fix = hint or nearest(section, config_lib.SECTIONS)
    raise InputError(f'--config.{path}', f'unknown config section {section!r}', fix=fix)
  if not field:
    raise InputError(
      f'--config.{path}', 'a section', expected=f'a field of it: {", ".join(config_lib.schema(section))}'
    )
  if field not in config_lib.schema(section):
    elsewhere = [f for f in all_fields() if f.partition('.')[2] == field]  # in another section
    fix = hints.sentence(elsewhere, value) or nearest(field, config_lib.schema(section))
    raise InputError(f'--config.{path}', f'unknown field {field!r} of section {section!r}', fix=fix)


def find_file(name: str) -> str:
  """Return the path of a config file that a person names, and behind a colon the argument of its ``get_config``.

  Args:
    name: a path; the name of a file in ``configs/``, such as ``'digits'``; or a run, or its ``config.json``.

  Raises:
    InputError: there is no such file, or it is of another kind.
  """
  if not name or name.startswith('--'):
    raise InputError('--config', f'no file is named: {USAGE}')
  place, colon, argument = (name, '', '') if '://' in name else name.partition(':')
  if colon and os.path.exists(name):
    raise InputError(
      '--config', f'{name}: a path with a colon, which ends the path of a config here', fix='rename the file'
    )
  path = user_path(place, '--config')
  if (path / 'config.json').is_file():
    path = path / 'config.json'
  if path.is_dir():
    inside = [*_modules(path), *sorted(file.parent for file in path.glob('*/config.json'))]
    instead = f'; there is {config_lib.join_limited([str(file) for file in inside], ", ")}' if inside else ''
    raise InputError('--config', f'{place} is a directory', expected=f'a file or a run{instead}')
  if not path.exists() and path.with_name(f'{path.name}.py').is_file():
    path = path.with_name(f'{path.name}.py')
  if not path.exists():
    known = recipes()
    by_name = known.get(path.name.removesuffix('.py')) if path.name == place else None
    if by_name is None:
      siblings = [file.name for file in _modules(path.parent) if _is_config(file)]
      hint = nearest(path.name, siblings if path.name != place else [*siblings, *known])
      fix = hint or 'give the path of a config, see configs/'
      raise InputError('--config', f'no such file: {place}', fix=fix)
    path = by_name
  _check_size(path)
  if path.suffix == '.json':
    return f'{pathlib.Path(__file__)}:{path}'
  if path.suffix not in ('.py', ''):
    raise InputError(
      f'--config: {place}', expected='a Python file, such as configs/digits.py, or the config.json of a run'
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
    raise InputError('--config', f'{path}: {error.strerror}') from None
  if not size:
    raise InputError('--config', f'{path}: the file is empty', expected='get_config(), see configs/')


def recipes() -> dict[str, pathlib.Path]:
  """Return the config files that are known by their names: those of jaxres, and of ``configs/`` here."""
  package = pathlib.Path(__file__).parent
  installed = package / RECIPES  # of a wheel; a checkout has them beside the package
  places = (installed if installed.is_dir() else package.parent / RECIPES, pathlib.Path(RECIPES))
  return {file.stem: file for place in places for file in _modules(place)}


def _modules(folder: pathlib.Path) -> list[pathlib.Path]:
  """Return the Python files of ``folder`` by name, but for that of the package itself."""
  return [file for file in sorted(folder.glob('*.py')) if file.name != '__init__.py']
