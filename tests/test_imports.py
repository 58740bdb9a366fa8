"""The layers of the house: an import goes down, and what is slow is not imported before it is needed."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxres

PACKAGE = pathlib.Path(jaxres.__file__).parent
LAYERS = [  # of packages and of modules at the root, from the ground
  {'errors', 'hints'},
  {'paths'},
  {'trees', 'config', 'runtime'},
  {'files'},
  {'schema', 'command_line'},
  {'losses', 'metrics', 'models', 'data'},
  {'state', 'tasks'},
  {'optim', 'checkpoint', 'log', 'evaluate'},
  {'workdir'},
  {'weights'},
  {'predict'},
  {'train'},
  {'analysis', 'sweep', 'doctor'},
  {'report'},
  {'tools'},
  {'cli'},
  {'__main__'},
]


def module_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imports_of(path: pathlib.Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == 'jaxres':
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('jaxres.'):
      found.add(node.module.split('.')[1])
  return found - {'__version__'}


def level(module: str) -> int:
  return next(i for i, layer in enumerate(LAYERS) if module in layer)


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: pathlib.Path) -> None:
  if path == PACKAGE / '__init__.py':
    assert not imports_of(path)
    return
  module = module_of(path)
  for imported in imports_of(path) - {module}:
    assert level(imported) < level(module), f'{path} imports {imported}'


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
  found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert found.stdout.splitlines()[-1] == '[]'
