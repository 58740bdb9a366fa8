"""A leaf is used by tools and benchmarks alone, and a test that uses one that is gone is skipped."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxres import cli
from tests import deletability, house

THERE = [name for name, rooms in deletability.GROUPS.items() if any((house.PACKAGE / room).exists() for room in rooms)]


def test_here_every_tool_of_the_table_has_its_file() -> None:
  assert cli.TOOLS == cli.ROWS


@pytest.fixture
def copy(tmp_path: pathlib.Path) -> pathlib.Path:
  deletability.copy_tree(tmp_path / 'jaxres')
  return tmp_path / 'jaxres'


@pytest.mark.parametrize('name', THERE)
def test_nothing_else_uses_a_leaf(name: str, copy: pathlib.Path) -> None:
  rooms = [room for room in deletability.GROUPS[name] if (copy / 'jaxres' / room).exists()]
  removed = deletability.remove(copy, rooms)
  assert {f'jaxres.{room}' for room in rooms} < set(removed)
  assert deletability.users_of(copy, removed) == []
  assert deletability.users_of(copy, removed, ('jaxres/tools', 'benchmarks')) == []
  assert not any((copy / 'jaxres' / room).exists() for room in rooms)


def test_a_module_that_uses_a_leaf_is_named(copy: pathlib.Path) -> None:
  with (copy / 'jaxres/train/plan.py').open('a') as file:
    file.write('\n\ndef check() -> None:\n  from jaxres.doctor import run\n')
  removed = deletability.remove(copy, ['doctor'])
  assert removed == ['jaxres.doctor', 'jaxres.tools.doctor']
  assert deletability.users_of(copy, removed) == ['jaxres.train.plan']


def test_what_docs_say_of_a_leaf_goes_with_it(copy: pathlib.Path) -> None:
  pages = lambda: ''.join(path.read_text() for path in (copy / 'docs').glob('*.md'))
  before = pages()
  deletability.remove(copy, ['doctor'])
  gone = set(before.splitlines()) - set(pages().splitlines())
  assert 'jaxres doctor --config configs/digits.py' in gone
  assert all(line.startswith(('jaxres doctor ', '| `doctor/', '| `tools/doctor.py`')) for line in gone)


TEST = """
from jaxres.gone import page
from jaxres.gone.deep import thing
def test_it():
  thing()
def test_its_attribute():
  page.make('x')
def test_another():
  pass
"""


def test_a_test_that_uses_what_is_gone_is_skipped(tmp_path: pathlib.Path) -> None:
  (tmp_path / 'test_uses.py').write_text(TEST)
  words = ['-m', 'pytest', '-q', '-p', 'tests.deletability', '-p', 'no:cacheprovider', '-c', os.devnull, str(tmp_path)]
  environment = os.environ | {deletability.REMOVED: 'jaxres.gone', 'PYTHONPATH': str(deletability.ROOT)}
  done = subprocess.run([sys.executable, *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
  assert '1 passed, 2 skipped' in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('name', THERE)
def test_the_rest_passes_without(name: str) -> None:
  assert deletability.main([name]) == 0
