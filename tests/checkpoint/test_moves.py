"""Renames and deletions as a network file system refuses them."""

import errno
import os
import pathlib
import shutil
import types
from collections.abc import Callable

import jax.numpy as jnp
import pytest

from jaxres import checkpoint, workdir
from jaxres.checkpoint import moves, steps
from jaxres.errors import InputError
from tests.train.runs import make_train_state as make_state


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
  """The seconds that were waited."""
  waited: list[float] = []
  monkeypatch.setattr(moves, 'time', types.SimpleNamespace(sleep=waited.append))
  return waited


def refuse(monkeypatch, module: object, name: str, number: int, times: int) -> None:
  """Have a function of the system fail the first ``times``."""
  real, calls = getattr(module, name), []

  def call(*args: object, **options: object) -> object:
    calls.append(args)
    if len(calls) <= times:
      raise OSError(number, os.strerror(number))
    return real(*args, **options)

  monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize('number', moves.PASSING)
def test_what_passes_is_waited_for(tmp_path, monkeypatch, pauses, number: int) -> None:
  for name in 'ab':
    (tmp_path / name).mkdir()
    (tmp_path / name / 'file').touch()
  refuse(monkeypatch, os, 'rename', number, 2)
  moves.rename(tmp_path / 'a', tmp_path / 'c')
  refuse(monkeypatch, os, 'rmdir', number, 2)
  assert moves.delete(tmp_path / 'b') is None
  assert [path.name for path in tmp_path.rglob('*')] == ['c', 'file']
  assert pauses == [*moves.PAUSES[:2]] * 2


@pytest.mark.parametrize('number', [errno.ESTALE, errno.EROFS])
def test_what_does_not_pass_is_one_line_and_nothing_moves(tmp_path, monkeypatch, number: int) -> None:
  (tmp_path / 'a').mkdir()
  refuse(monkeypatch, os, 'rename', number, 99)
  with pytest.raises(InputError, match=f'{tmp_path}/a: cannot be renamed to b: {os.strerror(number)}; nothing is lost'):
    moves.rename(tmp_path / 'a', tmp_path / 'b')
  refuse(monkeypatch, os, 'rmdir', number, 99)
  assert moves.delete(tmp_path / 'a') == os.strerror(number)
  assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_a_rename_whose_answer_was_lost_is_done(tmp_path, monkeypatch) -> None:
  real = os.rename

  def rename(old: pathlib.Path, new: pathlib.Path) -> None:
    real(old, new)
    real(old, new)  # the client asks again

  (tmp_path / 'a').mkdir()
  monkeypatch.setattr(os, 'rename', rename)
  moves.rename(tmp_path / 'a', tmp_path / 'b')
  assert [path.name for path in tmp_path.iterdir()] == ['b']
  with pytest.raises(InputError, match='cannot be renamed .*: No such file'):
    moves.rename(tmp_path / 'none', tmp_path / 'c')


def keep_a_file(monkeypatch, names: str) -> None:
  """Have directories whose names start so keep a file that is open elsewhere, as NFS does."""
  real = shutil.rmtree

  def rmtree(path: pathlib.Path, *args: object, **options: object) -> None:
    real(path, *args, **options)
    if pathlib.Path(path).name.startswith(names):
      pathlib.Path(path).mkdir()
      (pathlib.Path(path) / '.nfs000001').touch()
      raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

  monkeypatch.setattr(shutil, 'rmtree', rmtree)


@pytest.mark.parametrize('same_step', [False, True])
def test_what_cannot_be_deleted_behind_a_save_is_told_once_and_is_no_checkpoint(
  tmp_path, monkeypatch, capfd, same_step: bool
) -> None:
  with monkeypatch.context() as patch, checkpoint.open_manager(tmp_path / 'checkpoints') as manager:
    keep_a_file(patch, '1.')
    for step in (1, 1) if same_step else (1, 2, 3):
      checkpoint.save(manager, make_state(step), {'of': step}, {}, commit=True)
  last = 1 if same_step else 3
  directory = tmp_path / 'checkpoints'
  assert capfd.readouterr().err.count('cannot be deleted: Directory not empty; nothing needs it') == 1
  assert [*steps.list_checkpoints(directory)] == [last]
  assert [path.name for path in directory.rglob('.nfs*')] == ['.nfs000001']
  number, saved = workdir.read_step(tmp_path, None)
  assert (number, saved.progress) == (last, {'of': last})
  with checkpoint.open_manager(directory) as manager:
    assert manager.all_steps() == [last]
  assert not [*directory.rglob('.nfs*')]
  assert 'damaged' not in capfd.readouterr().err


@pytest.mark.parametrize('at', ['making way', 'put aside'])
def test_a_rename_around_a_save_that_fails_is_one_line_and_loses_nothing(tmp_path, monkeypatch, at: str) -> None:
  directory = tmp_path / 'checkpoints'
  with checkpoint.open_manager(directory, keep_latest=2) as manager:
    for step in (1, 2):
      checkpoint.save(manager, make_state(step), {}, {}, commit=True)
  changes: dict[str, Callable[[], None]] = {
    'making way': lambda: None,
    'put aside': lambda: (directory / '2/digests/metadata').write_text('{}') and None,
  }
  changes[at]()
  with (
    monkeypatch.context() as patch,
    pytest.raises(InputError, match='cannot be renamed .*: Stale file handle; nothing'),
  ):
    refuse(patch, moves.os, 'rename', errno.ESTALE, 99)
    with checkpoint.open_manager(directory, keep_latest=2) as manager:
      checkpoint.save(manager, make_state(2).replace(params={'a': jnp.zeros(3)}), {}, {}, commit=True)
  assert [*steps.list_checkpoints(directory)] == [1, 2]
  assert workdir.read_step(tmp_path, 1)[0] == 1
