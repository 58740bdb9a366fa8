"""Which changes of a module its tests do not notice: a mutation run, one module at a time.

  python -m tests.mutate jaxres/data/sampler.py [TEST...]   [--out=FILE] [--list]

Each mutant changes one thing: an operator, a comparison, a constant, a condition, or what is returned. The tests of the
module, at its mirrored path or as given, run against each in a child that is forked once the slow libraries are there.
Results are lines of JSON in FILE, by default .mutants/MODULE.jsonl; a run that was broken off goes on there, and a
mutant is run again only where its line, the module's other lines or the tests changed since.

Not mutated: docstrings, annotations, and the messages of what is raised, whose wording tests need not pin.
"""

import argparse
import ast
import copy
import hashlib
import importlib.abc
import importlib.util
import json
import os
import pathlib
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
LIBRARIES = ('jax', 'jax.numpy', 'flax.linen', 'optax', 'scipy.stats', 'sklearn.metrics', 'hypothesis', 'pytest')
SWAPS: dict[type, type] = {
  **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
  **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
  **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
  **{ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.MatMult: ast.Mult},
}
SECONDS = 60.0  # that a mutant may take beyond ten times the tests of the module as it is


class Mutant(NamedTuple):
  """A module with one change."""

  line: int
  change: str
  source: str

  @property
  def name(self) -> str:
    return f'{self.line}: {self.change}'


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
  """Yield what a node becomes, and a few words on each."""
  swap = lambda op: SWAPS[type(op)]()
  if isinstance(node, ast.Compare):
    for at, op in enumerate(node.ops):
      new = copy.deepcopy(node)
      new.ops[at] = swap(op)
      yield f'{ast.unparse(node)} -> {ast.unparse(new)}', new
  elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
    new = copy.deepcopy(node)
    new.op = swap(node.op)
    yield f'{ast.unparse(node)} -> {ast.unparse(new)}', new
  elif isinstance(node, ast.UnaryOp):
    yield f'{ast.unparse(node)} -> {ast.unparse(node.operand)}', node.operand
  elif isinstance(node, ast.Constant) and (new := other_constant(node.value)) is not None:
    yield f'{node.value!r} -> {new!r}', ast.Constant(new)
  elif isinstance(node, ast.Return) and node.value is not None and not is_constant(node.value, None):
    yield f'return {ast.unparse(node.value)} -> return None', ast.Return(ast.Constant(None))
  elif isinstance(node, ast.If | ast.IfExp | ast.While):
    new = copy.deepcopy(node)
    new.test = ast.UnaryOp(ast.Not(), node.test)
    yield f'if {ast.unparse(node.test)} -> if not', new


def other_constant(value: object) -> object:
  """Return another constant of the kind of ``value``; None where there is none to try."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int | float):
    return value + 1
  if isinstance(value, str):
    return f'{value}X'
  return None


def is_constant(node: ast.AST, value: object) -> bool:
  return isinstance(node, ast.Constant) and node.value is value


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
  """Yield parent, field and index of every node that may be changed."""
  for field, value in ast.iter_fields(node):
    if field in ('annotation', 'returns', 'type_params') or isinstance(node, ast.Raise | ast.JoinedStr):
      continue
    for at, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
      is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
      if isinstance(child, ast.AST) and not is_docstring:
        yield node, field, at
        yield from places(child)


def mutants(source: str) -> Iterator[Mutant]:
  """Yield every mutant of a module."""
  tree = ast.parse(source)
  for parent, field, at in places(tree):
    kept: Any = getattr(parent, field)
    node = kept if at is None else kept[at]
    for change, new in variants(node):
      ast.copy_location(new, node)
      setattr(parent, field, new if at is None else [*kept[:at], new, *kept[at + 1 :]])
      yield Mutant(getattr(node, 'lineno', 0), change, ast.unparse(ast.fix_missing_locations(tree)))
      setattr(parent, field, kept)


class Instead(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
  """Gives ``source`` for the module called ``name``."""

  def __init__(self, name: str, path: pathlib.Path, source: str):
    self.name, self.path, self.source = name, path, source

  def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
    if name != self.name:
      return None
    folders = [str(self.path.parent)] if self.path.name == '__init__.py' else None
    return importlib.util.spec_from_file_location(name, self.path, loader=self, submodule_search_locations=folders)

  def get_source(self, name: str) -> str:
    return self.source

  def is_package(self, name: str) -> bool:
    return self.path.name == '__init__.py'


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def run_tests(path: pathlib.Path, source: str, tests: Sequence[str], seconds: float) -> str:
  """Return what becomes of the tests against ``source``: 'survived', 'killed' or 'too slow'."""
  child = os.fork()
  if child == 0:
    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.meta_path.insert(0, Instead(module_name(path), path, source))
    status = 1
    try:
      import pytest

      status = int(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *tests]))
    finally:
      os._exit(status)
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      return 'survived' if os.waitstatus_to_exitcode(status) == 0 else 'killed'
    time.sleep(0.02)
  os.killpg(child, signal.SIGKILL)
  os.waitpid(child, 0)
  return 'too slow'


def mirror_path(path: pathlib.Path) -> pathlib.Path:
  """Return where the tests of a module are."""
  inside = path.relative_to(ROOT / 'jaxres')
  name = inside.parent.name if inside.name == '__init__.py' else inside.stem
  return ROOT / 'tests' / inside.parent / f'test_{name}.py'


def main(words: Sequence[str] | None = None) -> int:
  """Run every mutant of one module that has no result yet, and print which survived."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('module', type=pathlib.Path)
  parser.add_argument('tests', nargs='*')
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--list', action='store_true', help='print the mutants and run none')
  args = parser.parse_args(words)
  path = args.module.resolve()
  source = path.read_text()
  every = list(mutants(source))
  if args.list:
    print('\n'.join(mutant.name for mutant in every))
    return 0
  tests = args.tests or [str(mirror_path(path))]
  out = args.out or ROOT / '.mutants' / f'{module_name(path)}.jsonl'
  results = run(path, source, every, tests, out)
  report(module_name(path), every, results)
  return 0


def run(
  path: pathlib.Path, source: str, every: Sequence[Mutant], tests: Sequence[str], out: pathlib.Path
) -> dict[str, str]:
  """Return what became of each mutant by its key, and write it to ``out`` as it comes."""
  out.parent.mkdir(parents=True, exist_ok=True)
  known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
  results = {row['key']: row['result'] for row in known}
  files = ''.join(pathlib.Path(test.split('::')[0]).read_text() for test in tests)
  salt = hashlib.sha256(f'{source}\0{files}\0{tests}'.encode()).hexdigest()
  os.chdir(ROOT)
  warnings.filterwarnings('ignore', message='.*fork')  # no backend of JAX has started, and no thread
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.mutants/programs'))
  for library in LIBRARIES:
    importlib.import_module(library)
  started = time.monotonic()
  if run_tests(path, source, tests, 3600) != 'survived':
    sys.exit(f'error: {" ".join(tests)} fail with the module as it is')
  limit = SECONDS + 10 * (time.monotonic() - started)
  actual: dict[str, str] = {}
  for mutant in every:
    key = hashlib.sha256(f'{salt}\0{mutant.source}'.encode()).hexdigest()
    if key not in results:
      results[key] = run_tests(path, mutant.source, tests, limit)
      with out.open('a') as file:
        print(json.dumps({'key': key, 'mutant': mutant.name, 'result': results[key]}), file=file)
      print(f'{results[key]:9} {mutant.name}', flush=True)
    actual[mutant.source] = results[key]
  return actual


def report(name: str, every: Sequence[Mutant], results: dict[str, str]) -> None:
  survivors = [mutant for mutant in every if results[mutant.source] == 'survived']
  print(
    f'\n{name}: {len(every) - len(survivors)} of {len(every)} mutants noticed, {1 - len(survivors) / len(every):.1%}'
  )
  for mutant in survivors:
    print(f'  survived {mutant.name}')


if __name__ == '__main__':
  sys.exit(main())
