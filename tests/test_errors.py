import ast
import pathlib
import pickle
import re

import numpy as np
import pytest

from jaxres.errors import InputError, check_range, check_word, nearest, one_line

PACKAGE = pathlib.Path(__file__).parents[1] / 'jaxres'
ERRORS = ('InputError', 'DamagedError', 'NotFiniteError')
SEVERAL = {  # lines of several problems, each with its field, or of another library
  'InputError(config_lib.join_limited(problems))', 'InputError(join_limited(problems))', 'InputError(str(error))',
}  # fmt: skip


@pytest.mark.parametrize(
  ('given', 'line'),
  [
    ({'problem': 'too old'}, 'optim.lr: too old'),
    ({'expected': '0 or more', 'found': -1}, 'optim.lr: expected 0 or more, found -1'),
    ({'expected': 'a path', 'fix': 'name one'}, 'optim.lr: expected a path; name one'),
    ({'problem': 'cut off', 'expected': '3 bytes', 'found': 0}, 'optim.lr: cut off; expected 3 bytes, found 0'),
  ],
)
def test_an_input_error_is_one_line_of_its_parts(given, line) -> None:
  error = pickle.loads(pickle.dumps(InputError('optim.lr', **given)))  # as it comes from another process
  assert str(error) == line
  assert error.field == 'optim.lr'
  assert {name: getattr(error, name) for name in given} == {name: str(value) for name, value in given.items()}


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_error_says_where_and_what(path) -> None:
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition('.')[2] in ERRORS:
      given = {keyword.arg for keyword in node.keywords}
      is_structured = len(node.args) == 2 or (len(node.args) == 1 and 'expected' in given)
      assert is_structured or ast.unparse(node) in SEVERAL, f'{path}:{node.lineno}: {ast.unparse(node)}'
      sentences = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == 'fix')]
      words = [each.value for part in sentences for each in ast.walk(part) if isinstance(each, ast.Constant)]
      misplaced = [word for word in words if isinstance(word, str) and re.search(r'\b(expected|found) ', word)]
      assert not misplaced, f'{path}:{node.lineno}: {misplaced} is for expected= and found='


@pytest.mark.parametrize(
  ('bounds', 'right', 'wrong', 'span'),
  [
    ({'low': 0}, [0, 1.5, None], [-1], '0 or more'),
    ({'above': 0}, [1e-9], [0, -1], 'more than 0'),
    ({'high': 5}, [5, -7], [5.1], 'at most 5'),
    ({'below': 5}, [4.9], [5], 'less than 5'),
    ({'low': 0, 'below': 1}, [0, 0.99], [-0.1, 1.0, 2], 'a value in [0, 1)'),
    ({'above': 0, 'high': 1}, [1, 0.01], [0.0, 1.1], 'a value in (0, 1]'),
    ({'low': 1, 'unit': 'pixels'}, [1], [0], 'pixels, 1 or more'),
  ],
)
def test_a_value_outside_its_range_is_refused(bounds, right, wrong, span) -> None:
  for value in right:
    check_range('optim.ema', value, **bounds)
  for value in [*wrong, float('nan')]:
    with pytest.raises(InputError) as error:
      check_range('optim.ema', value, **bounds)
    assert str(error.value) == f'optim.ema: expected {span}, found {value}'


def test_an_unknown_word_is_refused_with_the_nearest() -> None:
  check_word('optim.name', 'sgd', ['sgd', 'adam'])
  check_word('model.stem', None, [None, 'cifar'])
  with pytest.raises(InputError, match="^optim.name: unknown optimizer 'sdg'; did you mean 'sgd'\\?$"):
    check_word('optim.name', 'sdg', ['sgd', 'adam'], 'optimizer')


def test_nearest() -> None:
  assert nearest('resnet81', ['resnet18', 'wrn']) == "did you mean 'resnet18'?"
  assert nearest('zzz', ['b', 'a']) == 'known: a, b'
  assert nearest('zzz', []) == ''


def test_input_errors_end_in_one_line(capsys) -> None:
  with pytest.raises(SystemExit) as exit_info, one_line():
    raise InputError('a\n  b')
  assert exit_info.value.code == 2
  assert capsys.readouterr().err == 'error: a b\n'


def test_debug_shows_the_traceback() -> None:
  with pytest.raises(InputError), one_line(debug=True):
    raise InputError('a')


def test_an_interrupt_exits_with_130(capsys) -> None:
  with pytest.raises(SystemExit) as exit_info, one_line(interrupted='it continues'):
    raise KeyboardInterrupt
  assert exit_info.value.code == 130
  assert capsys.readouterr().err == 'it continues\n'


def test_other_errors_pass_through() -> None:
  with pytest.raises(ZeroDivisionError), one_line():
    _ = 1 / 0


def test_nearest_of_many_words_is_short() -> None:
  assert nearest('zzz', [f'class{i:05}' for i in range(20_000)]).endswith('class00081, class00082 and 19,917 more')
  assert len(nearest('zzz', ['x' * 10_000 + str(i) for i in range(20)])) < 1100
  assert len(nearest('x' * 100_000, ['x' * 100_000 + 'y', 'x' * 100_000 + 'z'])) < 300  # nor is it compared for hours


@pytest.mark.parametrize('value', ['1', b'1', [1], {}, np.zeros(2), np.zeros((2, 2), object), 1j, object, len])
def test_what_is_no_number_or_word_is_one_short_line(value) -> None:
  with pytest.raises(InputError, match='data.val: expected a number of pixels, found') as caught:
    check_range('data.val', value, low=0, unit='pixels')
  assert '\n' not in str(caught.value)
  with pytest.raises(InputError, match='unknown stem') as caught:
    check_word('model.stem', value, [None, 'cifar'], 'stem')
  assert '\n' not in str(caught.value)


def test_a_long_word_is_cut() -> None:
  with pytest.raises(InputError) as caught:
    check_word('model.stem', 'x' * 5000, ['cifar'])
  assert len(str(caught.value)) < 200
