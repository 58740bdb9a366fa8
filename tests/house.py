"""The plan of the house as figures: its levels, what imports what, how long functions and files are.

`python -m tests.house [ROOT]` prints them for a checkout, this one where none is given; `python -m tests.house --write`
makes the table of files in docs/architecture.md from the docstrings.
"""

import ast
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

PACKAGE = pathlib.Path(__file__).parents[1] / 'jaxres'
LAYERS = [  # of packages and of modules at the root, from the ground
  {'errors', 'hints'},
  {'paths'},
  {'trees', 'config', 'runtime', 'npz'},
  {'files'},
  {'schema', 'command_line'},
  {'losses', 'metrics', 'models', 'data'},
  {'state', 'tasks'},
  {'optim', 'checkpoint', 'log', 'evaluate'},
  {'workdir'},
  {'weights'},
  {'predictor'},
  {'predict'},
  {'train'},
  {'analysis', 'export', 'sweep', 'doctor'},
  {'report'},
  {'tools'},
  {'cli'},
  {'__main__', ''},  # '' is the package itself, which has jaxres.load when it is first used
]
Graph = dict[str, set[str]]  # the modules that each module imports, by their names with all dots


class Function(NamedTuple):
  """A function and its length in lines of code: no docstring, comment or blank line."""

  place: str  # file:name
  lines: int  # with the signature
  body: int


def read_modules(package: pathlib.Path) -> dict[str, ast.Module]:
  """Return the modules of a package, parsed, by their names with all dots."""
  modules = {}
  for path in sorted(package.rglob('*.py')):
    parts = path.relative_to(package.parent).with_suffix('').parts
    modules['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = ast.parse(path.read_text())
  return modules


def imports_of(tree: ast.Module) -> Iterator[tuple[str, ...]]:
  """Yield what a module imports anywhere in it, each by the names that it may have, the likeliest first.

  A string that is the name of a module counts: it is what ``importlib.import_module`` is called with.
  """
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from ((f'{node.module}.{alias.name}', node.module) for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield (node.value,)


def read_imported_words(path: pathlib.Path) -> set[str]:
  """Return all names of modules, or that may be, which a file imports."""
  return {word for words in imports_of(ast.parse(path.read_text())) for word in words}


def import_graph(modules: Mapping[str, ast.Module]) -> Graph:
  """Return what imports what among ``modules``, imports inside functions too."""
  graph: Graph = {}
  for name, tree in modules.items():
    targets = (next((word for word in words if word in modules), None) for words in imports_of(tree))
    graph[name] = {target for target in targets if target} - {name, name.partition('.')[0]}
  return graph


def room_of(module: str) -> str:
  """Return the package or the module at the root that ``module`` is in; '' of the root itself."""
  return '' if '.' not in module else module.split('.')[1]


def arrows_up(graph: Graph, layers: list[set[str]]) -> list[str]:
  """Return the imports between rooms that do not go down a level."""
  level = {room: at for at, layer in enumerate(layers) for room in layer}
  pairs = ((module, target) for module, targets in graph.items() for target in targets)
  between = ((module, target) for module, target in pairs if room_of(module) != room_of(target))
  return sorted(f'{a} -> {b}' for a, b in between if level[room_of(a)] <= level[room_of(b)])


def reach(graph: Graph, module: str) -> set[str]:
  """Return all that a module imports, by way of others too."""
  reached: set[str] = set()
  waiting = [module]
  while waiting:
    new = graph[waiting.pop()] - reached
    reached |= new
    waiting += new
  return reached


def modules_in_circles(graph: Graph) -> list[str]:
  """Return the modules that import themselves by way of others."""
  return sorted(module for module in graph if module in reach(graph, module))


def code_lines(tree: ast.Module, text: str) -> set[int]:
  """Return the numbers of the lines that are code."""
  lines = {at for at, line in enumerate(text.splitlines(), 1) if line.strip() and not line.lstrip().startswith('#')}
  for node in ast.walk(tree):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
      lines -= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
  return lines


def functions_of(package: pathlib.Path) -> list[Function]:
  """Return the functions of a package, the longest body first."""
  functions = []
  for path in package.rglob('*.py'):
    text = path.read_text()
    code = code_lines(tree := ast.parse(text), text)
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
      within = {*range(node.lineno, (node.end_lineno or 0) + 1)} & code
      body = {*range(node.body[0].lineno, (node.end_lineno or 0) + 1)} & code
      functions.append(Function(f'{path.relative_to(package)}:{node.name}', len(within), len(body)))
  return sorted(functions, key=lambda function: function.body, reverse=True)


def table_of_files(package: pathlib.Path) -> str:
  """Return the table of docs/architecture.md: each module, those at the root and lower rooms first, and what it is."""
  level = {room: at for at, layer in enumerate(LAYERS) for room in layer}
  rows = []
  for path in package.rglob('*.py'):
    name = path.relative_to(package)
    what = ast.get_docstring(ast.parse(path.read_text()))
    if what and name.name != '__main__.py' and name.as_posix() != '__init__.py':
      order = (len(name.parts) > 1, level[name.with_suffix('').parts[0]], name.parent.as_posix(), name.name)
      rows.append((order, f'| `{name.as_posix()}` | {what.splitlines()[0]} |'))
  return '\n'.join(['| file | what |', '|---|---|', *(row for _, row in sorted(rows))]) + '\n'


def write_table(page: pathlib.Path) -> None:
  """Write the table of files into docs/architecture.md."""
  page.write_text(re.sub(r'(?<=## Files\n\n)(\|.*\n)+', lambda _: table_of_files(PACKAGE), page.read_text()))


def layers_of(root: pathlib.Path) -> list[set[str]]:
  """Return the levels that a checkout's test of imports knew, of a checkout of before this file."""
  test = ast.parse((root / 'tests/test_imports.py').read_text())
  is_levels = lambda node: isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'LAYERS'
  return next((ast.literal_eval(node.value) for node in test.body if is_levels(node)), LAYERS)


def main(root: str = '.') -> None:
  """Print the figures of a checkout."""
  package = pathlib.Path(root).resolve() / 'jaxres'
  graph = import_graph(read_modules(package))
  files = sorted(((len(path.read_text().splitlines()), path) for path in package.rglob('*.py')), reverse=True)
  functions = functions_of(package)
  at_root = [path for path in package.glob('*.py') if not path.name.startswith('__')]
  print(f'modules at the root    {len(at_root)}')
  print(f'arrows that run up     {len(arrows_up(graph, layers_of(package.parent)))}')
  print(f'modules in circles     {len(circles := modules_in_circles(graph))} {" ".join(circles)}')
  print(f'functions over 40      {sum(function.body > 40 for function in functions)}')
  print(f'  the longest          {functions[0].body} lines, {functions[0].place}')
  print(f'files over 300         {sum(lines > 300 for lines, _ in files)}')
  print(f'  the longest          {files[0][0]} lines, {files[0][1].relative_to(package)}')


if __name__ == '__main__':
  if sys.argv[1:] == ['--write']:
    write_table(PACKAGE.parent / 'docs/architecture.md')
  else:
    main(*sys.argv[1:])
