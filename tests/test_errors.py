import pickle

import pytest

from jaxres.errors import InputError, check_range, nearest, one_line


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
  assert {name: getattr(error, name) for name in given} == given


@pytest.mark.parametrize('value', [-0.1, 1.0, 2, float('nan'), float('inf')])
def test_a_value_outside_its_range_is_refused(value) -> None:
  check_range('optim.ema', 0.0, low=0.0, below=1.0)
  with pytest.raises(InputError, match=r'^optim.ema: expected a value in \[0, 1\), found '):
    check_range('optim.ema', value, low=0.0, below=1.0)


@pytest.mark.parametrize('value', [-1, float('nan'), float('inf')])
def test_a_value_below_its_range_is_refused(value) -> None:
  with pytest.raises(InputError, match='^optim.lr: expected 0 or more, found '):
    check_range('optim.lr', value, low=0)


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
