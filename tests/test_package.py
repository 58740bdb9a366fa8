"""What is installed: the recipes too, wherever jaxres lies."""

import pathlib
import subprocess
import sys
import sysconfig

import pytest

from tests.helpers import ROOT


@pytest.fixture(scope='module')
def package_files(tmp_path_factory) -> dict[str, bytes]:
  """The Python files of an installed jaxres, by their paths: those that setup.py names."""
  pytest.importorskip('setuptools', minversion='77')
  target = tmp_path_factory.mktemp('built')
  build = ['build', '--build-base', str(target), '--build-lib', str(target / 'lib')]
  egg = ['egg_info', '--egg-base', str(target)]
  done = subprocess.run([sys.executable, 'setup.py', '-q', *egg, *build], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  lib = target / 'lib'
  return {path.relative_to(lib).as_posix(): path.read_bytes() for path in lib.rglob('*') if path.is_file()}


def test_every_module_and_recipe_is_installed_and_nothing_else(package_files) -> None:
  modules = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / 'jaxres').rglob('*.py')}
  recipes = {f'jaxres/configs/{path.name}': path for path in (ROOT / 'configs').glob('*.py')}
  expected = {name: path.read_bytes() for name, path in (modules | recipes).items()}
  assert {name: content for name, content in package_files.items() if name.endswith('.py')} == expected
  others = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'jaxres').rglob('*.[chj][st]*')}
  assert {'jaxres/py.typed', *others} <= package_files.keys()


def test_recipes_are_known_by_name_where_there_is_no_checkout(package_files, tmp_path: pathlib.Path) -> None:
  for name, content in package_files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
  code = (
    'import jaxres.configs.digits as digits; from jaxres import command_line as c;'
    'print(digits.__file__, c.recipes()["digits"], c.load("digits") == digits.get_config())'
  )
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  site = sysconfig.get_paths()['purelib']
  command = [sys.executable, '-S', '-c', f'import sys; sys.path[:0] = [{str(tmp_path)!r}, {site!r}]; {code}']
  done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  place = str(tmp_path / 'jaxres/configs/digits.py')
  assert done.stdout.split() == [place, place, 'True']
