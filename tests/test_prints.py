"""No print shows text as somebody else wrote it: names of files and classes, messages of libraries, words of a file.

A text is protected where it is a constant of the source, the result of ``printable`` or of ``json.dumps``, or a number,
as its format says; and what is made of such texts alone. All else must go through one of them, or through ``say``.
"""

import ast
import pathlib

import pytest

from tests.helpers import ROOT

PROTECT = {'printable', 'dumps', 'len', 'bool'}
NUMERIC = tuple('dfFgGeE%,')  # how the format of a number ends; a string with one is an error
SOURCES = [ROOT / 'main.py', *sorted((ROOT / 'jaxres').rglob('*.py'))]


def is_number(form: ast.AST | None) -> bool:
  match form:
    case ast.JoinedStr(values=[*_, ast.Constant(value=str(text))]):
      return text.endswith(NUMERIC)
  return False


def is_protected(node: ast.AST) -> bool:
  match node:
    case ast.Constant():
      return True
    case ast.Name(id=name) | ast.Attribute(attr=name):
      return name.isupper()  # a constant of a module
    case ast.JoinedStr(values=parts):
      return all(map(is_protected, parts))
    case ast.FormattedValue(value=value, format_spec=form):
      return is_number(form) or is_protected(value)
    case ast.BinOp(op=ast.Add(), left=left, right=right):
      return is_protected(left) and is_protected(right)
    case ast.IfExp(body=body, orelse=other):
      return is_protected(body) and is_protected(other)
    case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in PROTECT:
      return True
    case ast.Call(func=ast.Attribute(value=ast.Constant(), attr='join'), args=[parts]):
      return is_protected(parts)
    case ast.List(elts=parts) | ast.Tuple(elts=parts):
      return all(map(is_protected, parts))
    case ast.Starred(value=part) | ast.GeneratorExp(elt=part) | ast.ListComp(elt=part):
      return is_protected(part)
  return False


def find_unprotected(source: str) -> list[int]:
  """Return the lines of ``source`` that print what is not protected."""
  lines = []
  for node in ast.walk(ast.parse(source)):
    match node:
      case (
        ast.Call(func=ast.Name(id='print'), args=texts)
        | ast.Call(func=ast.Attribute(value=ast.Attribute(attr='stderr' | 'stdout'), attr='write'), args=texts)
      ):
        lines += [node.lineno] * (not all(map(is_protected, texts)))
  return lines


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_print_is_of_protected_text(path: pathlib.Path) -> None:
  assert find_unprotected(path.read_text(encoding='utf-8')) == []


@pytest.mark.parametrize(
  ('line', 'is_bad'),
  [
    ("print(f'{path}: x')", True),
    ('print(note)', True),
    ("print(f'{error}', file=sys.stderr)", True),
    ("print('a' + name)", True),
    ("print(f'{name:>40}')", True),
    ("print(f'{name!r}')", True),
    ("print('\\n'.join(names))", True),
    ('print(printable(a), b)', True),
    ('sys.stderr.write(name)', True),
    ('print()', False),
    ("print('a', file=sys.stderr)", False),
    ("print(f'{printable(path)}: {size:.2f} MB, {n:,} rows')", False),
    ("print('\\n'.join(f'{printable(name)}' for name in names))", False),
    ("print(json.dumps({'a': name}))", False),
    ('console.print(name)', False),  # it protects what it is given: tests/tools/test_hostile_names.py
  ],
)
def test_the_walk_sees_what_is_not_protected(line: str, is_bad: bool) -> None:
  assert bool(find_unprotected(line)) == is_bad
