"""The layers of the house: an import goes down, and what is slow is not imported before it is needed."""

import pathlib
import subprocess
import sys

import pytest

from tests import house

GRAPH = house.import_graph(house.read_modules(house.PACKAGE))


def test_imports_go_down_a_level_or_stay_in_their_room() -> None:
  assert house.arrows_up(GRAPH, house.LAYERS) == []


def test_the_root_imports_nothing_but_load_when_it_is_used() -> None:
  assert GRAPH['jaxres'] <= {'jaxres.analysis.loaded'}


def test_no_imports_go_round_in_a_circle() -> None:
  assert house.modules_in_circles(GRAPH) == []


def test_the_picture_of_the_levels_is_that_of_the_test() -> None:
  page = (pathlib.Path(__file__).parents[1] / 'docs/architecture.md').read_text()
  rows = [set(line.split('│')[1].split()) for line in page.splitlines() if line.count('│') == 2]
  assert [*reversed(rows), {'__main__', ''}] == house.LAYERS


def test_the_walk_sees_imports_of_any_kind(tmp_path: pathlib.Path) -> None:
  package = tmp_path / 'jaxres'
  (package / 'data').mkdir(parents=True)
  for name, text in {
    '__init__': '',
    'errors': 'from jaxres.data import load',  # up
    'files': 'def read():\n  from jaxres import tools, errors',  # up, inside a function
    'tools': '',
    'cli': "TOOLS = {'show': ('jaxres.tools', 'a page')}",
    'paths': "TOOL = 'jaxres.tools'",  # up, by a word
    'data/__init__': 'import jaxres.data.load',
    'data/load': 'from jaxres.data import *',
    'data/sets': 'import jaxres.data.folder',  # round
    'data/folder': 'def find():\n  from jaxres.data.sets import a, b',
  }.items():
    (package / f'{name}.py').write_text(text)
  graph = house.import_graph(house.read_modules(package))
  arrows = ['jaxres.errors -> jaxres.data.load', 'jaxres.files -> jaxres.tools', 'jaxres.paths -> jaxres.tools']
  assert house.arrows_up(graph, house.LAYERS) == arrows
  assert graph['jaxres.cli'] == {'jaxres.tools'}
  circles = ['jaxres.data', 'jaxres.data.folder', 'jaxres.data.load', 'jaxres.data.sets']
  assert house.modules_in_circles(graph) == circles


@pytest.mark.parametrize(
  ('statement', 'unwanted'),
  [
    ('import jaxres.models', ['tensorflow', 'torch', 'tensorflow_datasets', 'sklearn', 'matplotlib']),
    (
      'import jaxres.train',
      [
        *('tensorflow', 'torch', 'tensorflow_datasets', 'sklearn', 'matplotlib'),
        *('clu', 'tensorboardX', 'array_record', 'simplejpeg', 'cv2', 'importlib_resources'),
      ],
    ),
    ('import jaxres.tools.convert', ['tensorflow', 'torch', 'tensorflow_datasets', 'sklearn', 'matplotlib']),
    ('import jaxres, jaxres.errors', ['jax', 'numpy']),
    ('from jaxres import config; config.make()', ['jax', 'flax', 'numpy', 'tensorflow_datasets']),
    (
      'import contextlib; from jaxres import cli\nwith contextlib.suppress(SystemExit): cli.main([])\npass',
      ['numpy', 'jax', 'jaxres.data', 'tensorflow_datasets'],
    ),
  ],
)
def test_what_an_import_does_not_load(statement: str, unwanted: list[str]) -> None:
  code = f'{statement}; import sys; print([m for m in {unwanted} if m in sys.modules])'
  actual = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert actual.stdout.splitlines()[-1] == '[]'


def test_lines_of_code_are_neither_docstrings_nor_comments(tmp_path: pathlib.Path) -> None:
  text = 'def f(\n  x,\n):\n  """Say.\n\n  More.\n  """\n\n  # why\n  y = x  # here\n  return """a\nb"""\n'
  (tmp_path / 'a.py').write_text(text)
  assert house.functions_of(tmp_path) == [house.Function('a.py:f', lines=6, body=3)]
