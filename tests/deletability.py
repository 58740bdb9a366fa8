"""Leaves can be taken out: each group of folders is deleted in a copy, with its tools and tests, and the rest passes.

python -m tests.deletability [--all] [GROUP ...]

With a group go the tools and the benchmarks that import it, the tests at their mirrored paths, their commands and rows
in docs/, and of the other tests those that call what is gone: they are skipped, and counted. Nothing else of the
package may import it, not even inside a function. In the copy all modules are imported, all tests collected, and those
of ``QUICK`` run; all of them with ``--all``. CI runs it without.
"""

import argparse
import difflib
import importlib.abc
import importlib.machinery
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from jaxres import cli
from tests import house

ROOT = pathlib.Path(__file__).parents[1]
GROUPS = {  # of rooms, or files in one; what is not there yet is no fault
  'pages': ('analysis', 'report', 'serve'),
  'sweep': ('sweep',),
  'doctor': ('doctor',),
  'export': ('export', 'compress', 'serve'),
  'compress': ('compress',),
  'serve': ('serve',),
  'search': ('sweep/search.py',),
}
QUICK = (
  *('test_cli.py', 'test_imports.py', 'test_hints.py', 'train/test_setup.py', 'test_evaluate.py'),
  'test_docs.py::test_tools_know_their_commands',
  'test_docs.py::test_the_page_on_the_architecture_has_every_file_as_its_docstring_says',
)
REMOVED = 'JAXRES_REMOVED'  # the environment variable with the modules that are gone, for the plugin
GONE = 'uses what was removed'


def main(argv: Sequence[str] | None = None) -> int:
  """Take out each group; return 1 where the rest does not pass without one, else 0."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('groups', nargs='*', metavar='GROUP', help=', '.join(GROUPS))
  parser.add_argument('--all', action='store_true', help='run every test, not only the quick ones')
  args = parser.parse_args(argv)
  if unknown := set(args.groups) - set(GROUPS):
    parser.error(f'unknown {", ".join(sorted(unknown))}; there are {", ".join(GROUPS)}')
  failed = [name for name in args.groups or GROUPS if not passes_without(name, everything=args.all)]
  print(f'failed: {", ".join(failed) or "none"}')
  return bool(failed)


def passes_without(name: str, *, everything: bool) -> bool:
  """Return whether the rest passes in a copy without a group; say what was removed."""
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / 'jaxres'
    copy_tree(copy)
    rooms = [room for room in GROUPS[name] if (copy / 'jaxres' / room).exists()]
    print(f'== {name}: {" ".join(rooms) or "not there"}', flush=True)
    if not rooms:
      return True
    removed = remove(copy, rooms)
    print(f'removed {" ".join(removed)}', flush=True)
    if users := users_of(copy, removed):
      print('\n'.join(f'error: {user} imports it' for user in users))
      return False
    return run_rest(copy, removed, everything=everything)


def copy_tree(target: pathlib.Path) -> None:
  """Copy what git knows or would add."""
  listing = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, capture_output=True, check=True)
  for name in filter(None, os.fsdecode(listing.stdout).split('\0')):
    if (ROOT / name).is_file():
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, target / name)


def remove(copy: pathlib.Path, rooms: Sequence[str]) -> list[str]:
  """Delete rooms, the tools and benchmarks that import them, the tests of all, and what docs and tables say of them.

  Returns:
    The names of the modules that are gone; that of a room stands for all in it.
  """
  files, removed = [], []
  for room in rooms:
    path = copy / 'jaxres' / room
    files += path.rglob('*.py') if path.is_dir() else [path]
    for place in (path, copy / 'tests' / room, copy / 'tests' / f'{path.parent.name}/test_{path.name}'):
      shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    removed.append(f'jaxres.{room.removesuffix(".py").replace("/", ".")}')
  while users := users_of(copy, removed, ('jaxres/tools', 'benchmarks')):
    for name in users:
      path = copy / f'{name.replace(".", "/")}.py'
      path.unlink()
      files.append(path)
      mirrored = path.relative_to(copy / 'jaxres' if name.startswith('jaxres.') else copy)
      (copy / 'tests' / mirrored).with_name(f'test_{path.name}').unlink(missing_ok=True)
      removed.append(name)
  (copy / 'tests/test_deletability.py').unlink()  # it is about what is there here
  forget(copy, [path.relative_to(copy).as_posix() for path in files])
  return removed


def users_of(copy: pathlib.Path, removed: Sequence[str], folders: Sequence[str] = ('jaxres', 'main.py')) -> list[str]:
  """Return the modules in ``folders`` that import a removed one anywhere, but for the tools' table and the root."""
  is_gone = lambda word: any(f'{word}.'.startswith(f'{name}.') for name in removed)
  users = []
  for path in (path for folder in folders for path in ([copy / folder, *sorted((copy / folder).rglob('*.py'))])):
    name = '.'.join(path.relative_to(copy).with_suffix('').parts).removesuffix('.__init__')
    if path.is_file() and name not in ('jaxres', 'jaxres.cli') and any(map(is_gone, house.read_imported_words(path))):
      users.append(name)
  return users


def forget(copy: pathlib.Path, files: Sequence[str]) -> None:
  """Delete the commands of removed tools and benchmarks from docs/, and the rows of tables that name removed files."""
  gone = []  # what a line starts or ends with
  for file in files:
    path = pathlib.PurePath(file.removeprefix('jaxres/'))
    gone += [f'| `{path}` |', f"'{path}':", f": '{path.with_name(f'test_{path.name}')}',"]
    gone += [f'jaxres {path.stem.replace("_", "-")} '] if path.parts[0] == 'tools' else [f'python {file} ']
  for path in [copy / 'README.md', *(copy / 'docs').glob('*.md'), copy / 'tests/test_layout.py']:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [
      line for line in lines if not line.strip().startswith(tuple(gone)) and not line.rstrip().endswith(tuple(gone))
    ]
    if len(kept) < len(lines):
      path.write_text(''.join(kept))


def run_rest(copy: pathlib.Path, removed: Sequence[str], *, everything: bool) -> bool:
  """Return whether what is left can be imported, and its tests be collected and pass."""
  modules = sorted(house.read_modules(copy / 'jaxres'))
  imports = f'import importlib\nfor name in {modules}: name.endswith("__main__") or importlib.import_module(name)'
  paths = (
    ['tests'] if everything else [f'tests/{path}' for path in QUICK if (copy / 'tests' / path.split('::')[0]).exists()]
  )
  pytest_words = ['-m', 'pytest', '-q', '-p', 'tests.deletability', '-p', 'no:cacheprovider']
  environment = os.environ | {'PYTHONPATH': str(copy), REMOVED: ','.join(removed)}
  workers = ['-n', '2'] if everything else []
  for words in (['-c', imports], [*pytest_words, '--collect-only', '-qq', 'tests'], [*pytest_words, *workers, *paths]):
    done = subprocess.run(
      [sys.executable, *words], cwd=copy, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
      print(f'error: {" ".join(words):.200} ended with status {done.returncode}\n{done.stdout[-8000:]}')
      return False
  print(done.stdout.strip().splitlines()[-1], flush=True)
  return True


def skip(name: str) -> NoReturn:
  """Skip the test, or the module, that uses what was removed."""
  pytest.skip(f'{GONE}: {name}', allow_module_level=True)


class Gone:
  """What a test has of a removed module: it may be named; to use it skips the test."""

  def __init__(self, name: str):
    self._name = name

  def __getattr__(self, attribute: str) -> NoReturn:
    if attribute.startswith(('_', 'pytest')):  # which pytest asks of everything in a module
      raise AttributeError(attribute)
    skip(f'{self._name}.{attribute}')

  def __call__(self, *_: Any, **__: Any) -> NoReturn:
    skip(self._name)

  def __or__(self, _: Any) -> 'Gone':
    return self

  __ror__ = __or__


class GoneModule(types.ModuleType):
  """A removed module, of which everything can be imported."""

  def __getattr__(self, attribute: str) -> Gone:
    if attribute.startswith('__'):
      raise AttributeError(attribute)
    return Gone(f'{self.__name__}.{attribute}')


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds the modules that were removed, for tests alone: the package was imported without it."""

  def __init__(self, removed: Sequence[str]):
    self.removed = removed

  def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
    """Return a spec of a removed module, None of any other."""
    is_gone = any(f'{fullname}.'.startswith(f'{name}.') for name in self.removed)
    return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if is_gone else None

  def create_module(self, spec: importlib.machinery.ModuleSpec) -> GoneModule:
    """Return the module, empty."""
    return GoneModule(spec.name)

  def exec_module(self, module: types.ModuleType) -> None:
    """Leave it empty."""


def pytest_configure() -> None:
  """Let the tests that call a removed tool or module skip: what this file is as a plugin of pytest."""
  if REMOVED not in os.environ:
    return
  sys.meta_path.append(Finder(os.environ[REMOVED].split(',')))
  gone = set(cli.ROWS) - set(cli.TOOLS)
  leads = {word: command.split()[1] for word, command in cli.OTHER_WORDS.items() if command.startswith('jaxres ')}
  run = cli._run

  def run_or_skip(words: list[str]) -> int | None:
    for word in difflib.get_close_matches(words[0], [*cli.ROWS, *leads], n=1) if words else ():
      if leads.get(word, word) in gone:
        skip(f'jaxres {word}')
    return run(words)

  cli._run = run_or_skip


if __name__ == '__main__':
  sys.exit(main())
