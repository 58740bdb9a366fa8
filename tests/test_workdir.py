"""One training in a workdir at a time, and only of the run that it is of."""

import errno
import fcntl
import functools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from jaxres import config as config_lib
from jaxres import data, files, predict, workdir
from jaxres.analysis import runs
from jaxres.checkpoint import steps
from jaxres.doctor import run as run_checks
from jaxres.errors import InputError
from jaxres.models import blocks, resnet
from jaxres.runtime.lock import IN_USE, LOCK, NO_LOCKS, find_trainer, lock_workdir
from jaxres.train import loop, seeds
from jaxres.weights import sources
from tests.faults import inject
from tests.helpers import make_arrays, merge, save_as_before

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
  with lock_workdir(tmp_path / 'a/run'):
    assert find_trainer(tmp_path / 'a/run') == f'process {os.getpid()} on host {socket.gethostname()}'
    message = f'is in use: process {os.getpid()} on host {socket.gethostname()} trains there'
    with pytest.raises(InputError, match=message), lock_workdir(tmp_path / 'a/run'):
      pytest.fail('both are in')
  with lock_workdir(tmp_path / 'a/run'):
    (tmp_path / 'a/run/kept').touch()
  assert os.listdir(tmp_path / 'a/run') == ['kept']


def test_what_was_made_for_the_lock_alone_goes_again(tmp_path) -> None:
  with pytest.raises(InputError, match='bad'), lock_workdir(tmp_path / 'a/b/run'):
    raise InputError('bad')
  assert not [*tmp_path.iterdir()]


def test_the_kernel_frees_what_a_killed_process_locked(tmp_path, holder) -> None:
  with pytest.raises(InputError, match=f'process {holder.pid} on host'), lock_workdir(tmp_path / 'run'):
    pytest.fail('both are in')
  holder.kill()
  holder.wait()
  assert (tmp_path / 'run' / LOCK).exists()
  assert find_trainer(tmp_path / 'run') is None
  with lock_workdir(tmp_path / 'run'):
    assert f'process {os.getpid()} ' in find_trainer(tmp_path / 'run')


@pytest.mark.parametrize('content', [b'', b'{"pid": 1', b'{"pid": "x", "host": 3}', b'[]', b'\xff', b'{"pid": 1e999}'])
def test_a_stale_file_locks_nobody_out_whatever_it_says(tmp_path, content: bytes) -> None:
  (tmp_path / LOCK).write_bytes(content)
  assert find_trainer(tmp_path) is None
  with lock_workdir(tmp_path):
    assert find_trainer(tmp_path)


def test_a_lock_that_was_deleted_as_it_was_taken_is_taken_again(tmp_path, monkeypatch) -> None:
  path, flock, times = tmp_path / LOCK, fcntl.flock, []

  def slow(file: int, how: int) -> None:  # the process before ends between open and flock
    if not times:
      path.unlink()
    times.append(how)
    flock(file, how)

  monkeypatch.setattr(fcntl, 'flock', slow)
  with lock_workdir(tmp_path):
    assert len(times) == 2
    with pytest.raises(InputError, match='is in use'), lock_workdir(tmp_path):
      pytest.fail('both are in')


@pytest.mark.parametrize('number', NO_LOCKS)
def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, capsys, number: int) -> None:
  def refuse(*_: object) -> None:
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with lock_workdir(tmp_path):
    pass
  assert 'no locks on this file system' in capsys.readouterr().err


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch) -> None:
  def refuse(*_: object) -> int:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  monkeypatch.setattr(os, 'open', refuse)
  with pytest.raises(InputError, match=r'cannot write in .*: Read-only file system'), lock_workdir(tmp_path):
    pass


@pytest.mark.parametrize('number', [errno.EIO, errno.EPERM, errno.ESTALE, errno.ENODEV])
def test_a_lock_that_fails_is_not_taken_for_another_training(tmp_path, monkeypatch, number: int) -> None:
  def refuse(*_: object) -> None:
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  line = f'--workdir: cannot lock {tmp_path}/run/{LOCK}: {os.strerror(number)}; look at the disk, or use another'
  with pytest.raises(InputError, match=re.escape(line)), lock_workdir(tmp_path / 'run'):
    pytest.fail('it is locked')


@pytest.mark.parametrize('number', IN_USE)
def test_a_lock_that_another_has_is_in_use(tmp_path, monkeypatch, number: int) -> None:
  def refuse(*_: object) -> None:
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with pytest.raises(InputError, match='run is in use: another process trains there'), lock_workdir(tmp_path / 'run'):
    pytest.fail('both are in')


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
  with lock_workdir(place):
    before = everything(place)
    with pytest.raises(InputError, match='is in use'):
      loop.train_and_evaluate(merge(config, train={'dry_run': dry_run, 'epochs': 9}), tmp_path / 'run')
    assert everything(place) == before


def test_a_series_is_locked_as_a_complete(trained, tmp_path) -> None:
  config, _ = trained
  with lock_workdir(tmp_path), pytest.raises(InputError, match='is in use'):
    seeds.train_and_evaluate(config, tmp_path, 2)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('config_file', ['kept', 'missing', 'null', 'of the other'])
def test_checkpoints_of_another_run_are_refused(trained, tmp_path, config_file: str) -> None:
  config, source = trained
  shutil.copytree(source, tmp_path / 'run')
  other = merge(config, train={'seed': 1})
  file = tmp_path / 'run/config.json'
  if config_file == 'missing':
    file.unlink()
  elif config_file == 'null':
    file.write_text('null\n')
  elif config_file == 'of the other':
    file.write_text(config_lib.to_json(config_lib.complete(other)))
  before = everything(tmp_path / 'run')
  with pytest.raises(InputError, match='another (run|config): train.seed was 0 there'):
    loop.train_and_evaluate(other, tmp_path / 'run')
  assert everything(tmp_path / 'run') == before
  if config_file == 'of the other':
    return
  assert loop.train_and_evaluate(config, tmp_path / 'run')['test/top1'] >= 0  # of the run that they are of
  written = config_lib.to_dict(config_lib.complete(merge(config, model={'dtype': 'float32'})))
  assert workdir.read_config(tmp_path / 'run') == written


def test_what_may_change_may_differ_in_a_checkpoint(trained, tmp_path) -> None:
  config, source = trained
  shutil.copytree(source, tmp_path / 'run')
  workdir.check_config(tmp_path / 'run', config_lib.complete(merge(config, train={'epochs': 3})))


@pytest.mark.parametrize('look', ['digest', 'evaluate', 'doctor'])
def test_readers_know_a_checkpoint_of_another_run(trained, tmp_path, look: str) -> None:
  config, source = trained
  shutil.copytree(source, tmp_path / 'run')
  other = merge(config, optim={'lr': 0.3})
  (tmp_path / 'run/config.json').write_text(config_lib.to_json(config_lib.complete(other)))
  message = r'of another run: optim.lr was 0.1 there, and is 0.3 in this run'
  if look == 'doctor':
    rows = [check for check in run_checks.check_workdir(tmp_path / 'run') if check.subject.startswith('checkpoint ')]
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
  (tmp_path / 'run/x.0123abcd.part').mkdir()  # which jaxres makes none of
  loop.train_and_evaluate(config, tmp_path / 'run')
  assert sorted(path.name for path in (tmp_path / 'run').glob('*.part')) == ['my.part', 'x.0123abcd.part']


def test_what_is_appended_is_complete_or_not_there(tmp_path, monkeypatch) -> None:
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
  with pytest.raises(InputError, match=f'{path}: the disk is full, cannot write'):
    files.append(path, b'two\n')
  with pytest.raises(InputError, match='the disk is full'):
    files.append(tmp_path / 'new', b'two\n')
  with pytest.raises(InputError, match='the disk is full'):
    files.write_atomic(tmp_path / 'other', 'text')
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
  with lock_workdir(tmp_path):
    content = json.loads((tmp_path / LOCK).read_text())
  assert content == {'pid': os.getpid(), 'host': socket.gethostname()}


def swap_names(content: dict) -> dict:
  return content | {'class_names': [content['class_names'][k] for k in (1, 0, 2, 3)]}


EDITS = {
  'two names exchanged': swap_names,
  'another mean': lambda content: content | {'mean': [0.5, *content['mean'][1:]]},
  'another std': lambda content: content | {'std': [0.5, *content['std'][1:]]},
  'another rule': lambda content: content | {'split_rule': 1},
  'no rule': lambda content: {name: value for name, value in content.items() if name != 'split_rule'},
  'no fingerprints': lambda content: content | {'splits': {}},
  'a field more': lambda content: content | {'note': 'mine'},
}


@pytest.mark.parametrize('edit', EDITS)
def test_an_edit_of_data_json_is_seen_by_all_that_count_on_it(trained, tmp_path, edit: str) -> None:
  config, source = trained
  run = shutil.copytree(source, tmp_path / 'run')
  file = run / 'data.json'
  content = json.loads(file.read_text())
  file.write_text(json.dumps(EDITS[edit](content)))
  before = everything(run)
  line = re.escape(
    f'{file}: edited since checkpoint 2, or of another run; put it back as jaxres wrote it, or delete it'
  )
  again = merge(config, train={'epochs': 2})
  for look in (
    lambda: loop.train_and_evaluate(again, run),
    lambda: runs.read_runs([str(run)]),
    lambda: predict.load(str(run)),
    lambda: sources.read(str(run), 'latest'),
  ):
    with pytest.raises(files.DamagedError, match=line):
      look()
  assert [check.subject for check in run_checks.check_run_files(run)] == ['data.json']
  assert everything(run) == before
  file.write_text(json.dumps(content))  # the same content in another form
  assert not [*run_checks.check_run_files(run)]
  assert loop.train_and_evaluate(again, run)['test/top1'] >= 0


def test_a_lost_data_json_is_written_again_from_the_same_data_alone(trained, tmp_path, monkeypatch) -> None:
  config, source = trained
  run = shutil.copytree(source, tmp_path / 'run')
  written = (run / 'data.json').read_text()
  (run / 'data.json').unlink()
  for look in (lambda: runs.read_runs([str(run)]), lambda: predict.load(str(run))):
    with pytest.raises(InputError, match='data.json: missing; put it back as jaxres wrote it, or give the command'):
      look()
  arrays = make_arrays()
  arrays['train_x'][0, 0, 0, 0] ^= 1
  np.savez(tmp_path / 'other.npz', **arrays)
  with pytest.raises(InputError, match='holds a run on other data: its SHA-256 was'):
    loop.train_and_evaluate(merge(config, data={'path': str(tmp_path / 'other.npz')}), run)
  assert not (run / 'data.json').exists()
  monkeypatch.setattr(data, 'SPLIT_RULE', 1)  # what a run with nothing there would take
  loop.train_and_evaluate(merge(config, train={'epochs': 2}), run)
  assert (run / 'data.json').read_text() == written
  assert runs.read_runs([str(run)])[0].dataset.info.split_rule == 2


def test_a_run_that_never_told_its_split_is_not_trained_on_another(trained, tmp_path, monkeypatch) -> None:
  """Of an older jaxres whose data.json is lost, no checkpoint says what it was trained on."""
  config, _ = trained
  run = tmp_path / 'run'
  with monkeypatch.context() as patch:
    save_as_before(patch)
    loop.train_and_evaluate(config, run)
  assert not workdir.read_step(run, None)[1].about.keys() & {'data_sha256', 'split_rule'}
  stored = (run / 'data.json').read_text()
  (run / 'data.json').unlink()
  before = everything(run)
  more, line = merge(config, train={'epochs': 2}), 'data.json: missing, and the checkpoints do not say which examples'
  for look in (lambda: loop.train_and_evaluate(more, run), lambda: runs.read_runs([str(run)])):
    with pytest.raises(InputError, match=line):
      look()
  assert everything(run) == before
  (run / 'data.json').write_text(stored)
  assert runs.read_runs([str(run)])
  loop.train_and_evaluate(more, run)  # and goes on
  assert workdir.read_step(run, None)[1].about['split_rule'] == 2


def damage_seed(file: pathlib.Path) -> None:
  content = json.loads(file.read_text())
  content['config']['train']['seed'] = 7
  file.write_text(json.dumps(content))


def damage_data(file: pathlib.Path) -> None:
  file.write_text(json.dumps(json.loads(file.read_text()) | {'data_sha256': '0' * 64, 'split_rule': 1}))


@pytest.mark.parametrize(
  'damage',
  [damage_seed, damage_data, pathlib.Path.unlink, lambda file: file.write_text('{"config": 3}'),
   lambda file: file.write_text('{"config": {"train": {"no such field": 1}}}')],
)  # fmt: skip
def test_a_damaged_about_of_one_checkpoint_is_put_aside(trained, tmp_path, capfd, damage) -> None:
  config, source = trained
  run = shutil.copytree(source, tmp_path / 'run')
  config = merge(config, train={'epochs': 2}, checkpoint={'keep_latest': 2})
  loop.train_and_evaluate(config, run)
  digest = workdir.read_step(run, None)[1].digests
  damage(run / 'checkpoints/4/about/metadata')
  capfd.readouterr()
  loop.train_and_evaluate(config, run)
  assert 'checkpoint 4 is damaged: about: ' in capfd.readouterr().err
  assert workdir.read_step(run, None)[1].digests == digest  # trained again from the one before
  assert (run / 'checkpoints/4.bad').is_dir()


@pytest.mark.parametrize('size', [0, -1])
def test_options_that_may_change_are_still_in_their_range(trained, tmp_path, size: int) -> None:
  _, source = trained
  run = shutil.copytree(source, tmp_path / 'run')
  content = json.loads((run / 'config.json').read_text())
  content['train']['eval_batch_size'] = size
  (run / 'config.json').write_text(json.dumps(content))
  with pytest.raises(
    files.DamagedError, match=r'config.json: train.eval_batch_size: expected more than 0, found .*put'
  ):
    runs.read_runs([str(run)])


@pytest.mark.parametrize('place', ['../run', 'x/../../run', '../link/run'])
def test_a_workdir_may_be_named_by_the_directory_above(trained, tmp_path, monkeypatch, place: str) -> None:
  config, _ = trained
  (tmp_path / 'here/x').mkdir(parents=True)
  (tmp_path / 'link').symlink_to('.')
  monkeypatch.chdir(tmp_path / 'here')
  for epochs in (1, 2):
    loop.train_and_evaluate(merge(config, train={'epochs': epochs}), place)
  assert [*steps.list_checkpoints(tmp_path / 'run/checkpoints')] == [4]
  assert workdir.read_step(pathlib.Path(place), None)[0] == 4
  assert runs.read_runs([place])[0].path == pathlib.Path(place)
  assert predict.load(place).class_names == ('0', '1', '2', '3')
  assert not [check for check in run_checks.check_workdir(pathlib.Path(place)) if check.verdict == 'problem']


def test_a_batch_is_no_larger_than_the_split(trained) -> None:
  _, source = trained
  (run,) = runs.read_runs([str(source)])
  plain, huge = (runs.predict_split(run, 'test', size) for size in (40, 10**12))
  np.testing.assert_allclose(huge.logits, plain.logits, rtol=1e-5, atol=1e-5)


OUT_OF_RANGE = {
  'optim': ({'lr': -1.0}, 'optim.lr: expected 0 or more, found -1.0'),
  'data': ({'batch_size': 0}, 'data.batch_size: expected 1 or more, found 0'),
  'augment': ({'cutout': -3}, r'augment.cutout: expected pixels, a value in \[0, 2147483648\), found -3'),
  'train': ({'ema': 2.0}, r'train.ema: expected a value in \[0, 1\), found 2.0'),
  'model': ({'dropout': 7.0}, r'model.dropout: expected a value in \[0, 1\), found 7.0'),
  'checkpoint': ({'keep_latest': 0}, 'checkpoint.keep_latest: expected 1 or more, found 0'),
}


@pytest.mark.parametrize('section', OUT_OF_RANGE)
def test_a_value_out_of_its_range_is_not_told_as_another_config(trained, tmp_path, section: str) -> None:
  config, source = trained
  shutil.copytree(source, tmp_path / 'run')
  fields, message = OUT_OF_RANGE[section]
  before = everything(tmp_path / 'run')
  with pytest.raises(InputError, match=f'^{message}'):
    loop.train_and_evaluate(merge(config, **{section: fields}), tmp_path / 'run')
  assert everything(tmp_path / 'run') == before
  edited = config_lib.complete(merge(config, **{section: fields}))
  (tmp_path / 'run/config.json').write_text(config_lib.to_json(edited))
  with pytest.raises(InputError) as caught:
    sources.read(str(tmp_path / 'run'))
  assert 'put config.json back' in str(caught.value) or re.search(f'{message}; put it back', str(caught.value))
