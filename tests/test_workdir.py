"""One training in a workdir at a time, and only of the run that it is of."""

import errno
import fcntl
import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from jaxres import config as config_lib
from jaxres import files, workdir
from jaxres.checkpoint import steps
from jaxres.errors import InputError
from jaxres.models import blocks, resnet
from jaxres.runtime.lock import LOCK, NO_LOCKS, locked, trainer
from jaxres.train import loop, seeds
from tests.faults import inject
from tests.helpers import make_arrays, merged

HOLD = """
import fcntl, json, os, pathlib, socket, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}).encode())
print('ready', flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the lock of ``tmp_path / 'run'``."""
  (tmp_path / 'run').mkdir(exist_ok=True)
  command = [sys.executable, '-c', HOLD, str(tmp_path / 'run' / LOCK)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'ready\n'
  yield process
  process.kill()
  process.communicate()


def everything(directory: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(directory)): path.read_bytes() for path in inject.files(directory)}


def test_two_of_one_process_keep_each_other_out(tmp_path) -> None:
  with locked(tmp_path / 'a/run'):
    assert trainer(tmp_path / 'a/run') == f'process {os.getpid()} on host {socket.gethostname()}'
    message = f'is in use: process {os.getpid()} on host {socket.gethostname()} trains there'
    with pytest.raises(InputError, match=message), locked(tmp_path / 'a/run'):
      pytest.fail('both are in')
  with locked(tmp_path / 'a/run'):
    (tmp_path / 'a/run/kept').touch()
  assert os.listdir(tmp_path / 'a/run') == ['kept']


def test_what_was_made_for_the_lock_alone_goes_again(tmp_path) -> None:
  with pytest.raises(InputError, match='bad'), locked(tmp_path / 'a/b/run'):
    raise InputError('bad')
  assert not [*tmp_path.iterdir()]


def test_the_kernel_frees_what_a_killed_process_held(tmp_path, holder) -> None:
  with pytest.raises(InputError, match=f'process {holder.pid} on host'), locked(tmp_path / 'run'):
    pytest.fail('both are in')
  holder.kill()
  holder.wait()
  assert (tmp_path / 'run' / LOCK).exists()
  assert trainer(tmp_path / 'run') is None
  with locked(tmp_path / 'run'):
    assert f'process {os.getpid()} ' in trainer(tmp_path / 'run')


@pytest.mark.parametrize('content', [b'', b'{"pid": 1', b'{"pid": "x", "host": 3}', b'[]', b'\xff', b'{"pid": 1e999}'])
def test_a_stale_file_locks_nobody_out_whatever_it_says(tmp_path, content: bytes) -> None:
  (tmp_path / LOCK).write_bytes(content)
  assert trainer(tmp_path) is None
  with locked(tmp_path):
    assert trainer(tmp_path)


def test_a_lock_that_was_deleted_as_it_was_taken_is_taken_again(tmp_path, monkeypatch) -> None:
  path, flock, times = tmp_path / LOCK, fcntl.flock, []

  def slow(file: int, how: int) -> None:  # the process before ends between open and flock
    if not times:
      path.unlink()
    times.append(how)
    flock(file, how)

  monkeypatch.setattr(fcntl, 'flock', slow)
  with locked(tmp_path):
    assert len(times) == 2
    with pytest.raises(InputError, match='is in use'), locked(tmp_path):
      pytest.fail('both are in')


@pytest.mark.parametrize('number', NO_LOCKS)
def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, capsys, number: int) -> None:
  def refuse(*_: object) -> None:
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with locked(tmp_path):
    pass
  assert 'no locks on this file system' in capsys.readouterr().err


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch) -> None:
  def refuse(*_: object) -> int:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  monkeypatch.setattr(os, 'open', refuse)
  with pytest.raises(InputError, match=r'cannot write in .*: Read-only file system'), locked(tmp_path):
    pass


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Iterator[tuple[dict, pathlib.Path]]:
  """A short run and its config."""
  directory = tmp_path_factory.mktemp('trained')
  np.savez(directory / 'data.npz', **make_arrays())
  config = {
    'model': {'name': 'tiny'},
    'data': {'name': 'arrays', 'path': str(directory / 'data.npz'), 'batch_size': 48},
    'train': {'epochs': 1, 'eval_batch_size': 40},
  }
  model = functools.partial(resnet.ResNet, (1,), (8,), blocks.BasicBlock, stem_type='cifar')
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(resnet.MODELS, 'tiny', model)
    loop.train_and_evaluate(config, directory / 'run')
    yield config, directory / 'run'


@pytest.mark.parametrize('dry_run', [False, True])
def test_nothing_of_a_training_is_touched_by_a_second(trained, tmp_path, dry_run: bool) -> None:
  config, source = trained
  place = tmp_path / ('run/dry_run' if dry_run else 'run')
  shutil.copytree(source, place)
  with locked(place):
    before = everything(place)
    with pytest.raises(InputError, match='is in use'):
      loop.train_and_evaluate(merged(config, train={'dry_run': dry_run, 'epochs': 9}), tmp_path / 'run')
    assert everything(place) == before


def test_a_series_is_locked_as_a_whole(trained, tmp_path) -> None:
  config, _ = trained
  with locked(tmp_path), pytest.raises(InputError, match='is in use'):
    seeds.train_and_evaluate(config, tmp_path, 2)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('config_file', ['kept', 'missing', 'null', 'of the other'])
def test_checkpoints_of_another_run_are_refused(trained, tmp_path, config_file: str) -> None:
  config, source = trained
  shutil.copytree(source, tmp_path / 'run')
  other = merged(config, train={'seed': 1})
  file = tmp_path / 'run/config.json'
  if config_file == 'missing':
    file.unlink()
  elif config_file == 'null':
    file.write_text('null\n')
  elif config_file == 'of the other':
    file.write_text(config_lib.to_json(config_lib.complete(other)))
  before = everything(tmp_path / 'run')
  refused = 'it is null; put it back' if config_file == 'null' else 'another (run|config): train.seed was 0 there'
  with pytest.raises(InputError, match=refused):
    loop.train_and_evaluate(other, tmp_path / 'run')
  assert everything(tmp_path / 'run') == before
  if config_file in ('of the other', 'null'):
    return
  assert loop.train_and_evaluate(config, tmp_path / 'run')['test/top1'] >= 0  # of its own run


def test_what_may_change_may_differ_in_a_checkpoint(trained, tmp_path) -> None:
  config, source = trained
  shutil.copytree(source, tmp_path / 'run')
  workdir.check_config(tmp_path / 'run', config_lib.complete(merged(config, train={'epochs': 3})))


@pytest.mark.parametrize('look', ['digest', 'evaluate', 'doctor'])
def test_readers_know_a_checkpoint_of_another_run(trained, tmp_path, look: str) -> None:
  from jaxres import workdir
  from jaxres.doctor import run as run_checks
  from jaxres.weights import sources

  config, source = trained
  shutil.copytree(source, tmp_path / 'run')
  other = merged(config, optim={'lr': 0.3})
  (tmp_path / 'run/config.json').write_text(config_lib.to_json(config_lib.complete(other)))
  message = r'of another run: optim.lr was 0.1 there, and is 0.3 in this run'
  if look == 'doctor':
    rows = [check for check in run_checks.workdir(tmp_path / 'run') if check.subject.startswith('checkpoint ')]
    assert [row.verdict for row in rows] == ['problem']
    assert message in rows[0].finding
  else:
    with pytest.raises(InputError, match=message):
      workdir.read_step(tmp_path / 'run', None) if look == 'digest' else sources.read(str(tmp_path / 'run'))


@pytest.mark.parametrize('url', ['gs://bucket/x', 's3://bucket/x', 'file:///x', 'HDFS://a/b', 'gs:/bucket/x'])
def test_urls_are_refused_and_nothing_is_written(tmp_path, monkeypatch, url: str) -> None:
  monkeypatch.chdir(tmp_path)
  for place in (url, pathlib.Path(url)) if not url.startswith('file') else (url,):
    with pytest.raises(InputError, match='is not supported'):
      loop.train_and_evaluate({'data': {'name': 'digits'}}, place)
    with pytest.raises(InputError, match='is not supported'):
      seeds.train_and_evaluate({'data': {'name': 'digits'}}, place, 2)
  assert not [*tmp_path.iterdir()]


def test_what_a_kill_left_is_deleted(trained, tmp_path) -> None:
  config, source = trained
  shutil.copytree(source, tmp_path / 'run')
  (tmp_path / 'run/config.json.0123abcd.part').write_text('{')
  (tmp_path / 'run/my.part').write_text('mine')
  loop.train_and_evaluate(config, tmp_path / 'run')
  assert [path.name for path in (tmp_path / 'run').glob('*.part')] == ['my.part']


def test_what_is_appended_is_whole_or_not_there(tmp_path, monkeypatch) -> None:
  path = tmp_path / 'rows'
  files.append(path, b'one\n')

  opened = pathlib.Path.open

  class Full:
    def __init__(self, file):
      self.file = file

    def __enter__(self):
      return self

    def __exit__(self, *_):
      self.file.close()

    def __getattr__(self, name):
      return getattr(self.file, name)

    def write(self, data):
      self.file.write(bytes(data)[:2])
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(pathlib.Path, 'open', lambda self, *args, **kw: Full(opened(self, *args, **kw)))
  with pytest.raises(InputError, match=f'the disk is full: cannot write {path}'):
    files.append(path, b'two\n')
  with pytest.raises(InputError, match='the disk is full'):
    files.append(tmp_path / 'new', b'two\n')
  with pytest.raises(InputError, match='the disk is full'):
    files.write_whole(tmp_path / 'other', 'text')
  monkeypatch.undo()
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {'rows': b'one\n'}


def test_identities_tell_a_checkpoint_from_the_next_in_its_place(tmp_path) -> None:
  (tmp_path / '1').mkdir()
  before = steps.identities({1: tmp_path / '1', 2: tmp_path / '2'})
  assert before[2] is None
  (tmp_path / '1').rename(tmp_path / '3')
  (tmp_path / '1').mkdir()
  assert steps.identities({1: tmp_path / '1'})[1] != before[1]


def test_the_lock_says_who_holds_it(tmp_path) -> None:
  with locked(tmp_path):
    content = json.loads((tmp_path / LOCK).read_text())
  assert content == {'pid': os.getpid(), 'host': socket.gethostname()}
