import pytest

from jaxres.errors import InputError, nearest, one_line


def test_nearest() -> None:
  assert nearest('resnet81', ['resnet18', 'wrn']) == "; did you mean 'resnet18'?"
  assert nearest('zzz', ['b', 'a']) == '; known: a, b'
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
