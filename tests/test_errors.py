import pytest

from jaxres import errors


def test_nearest() -> None:
  assert errors.nearest('resnet81', ['resnet18', 'wrn']) == "; did you mean 'resnet18'?"
  assert errors.nearest('zzz', ['b', 'a']) == '; known: a, b'
  assert errors.nearest('zzz', []) == ''


def test_input_errors_end_in_one_line(capsys) -> None:
  with pytest.raises(SystemExit) as exit_info, errors.one_line():
    raise errors.InputError('a\n  b')
  assert exit_info.value.code == 2
  assert capsys.readouterr().err == 'error: a b\n'


def test_debug_shows_the_traceback() -> None:
  with pytest.raises(errors.InputError), errors.one_line(debug=True):
    raise errors.InputError('a')


def test_an_interrupt_exits_with_130(capsys) -> None:
  with pytest.raises(SystemExit) as exit_info, errors.one_line(interrupted='it continues'):
    raise KeyboardInterrupt
  assert exit_info.value.code == 130
  assert capsys.readouterr().err == 'it continues\n'


def test_other_errors_pass_through() -> None:
  with pytest.raises(ZeroDivisionError), errors.one_line():
    _ = 1 / 0
