"""Paths that no file system has, and files that never end: one line each, from every tool, and nothing is made."""

import functools
import os
import pathlib
import pwd
import signal
import socket
import subprocess
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from PIL import Image

from jaxres import cli, command_line, models
from jaxres.errors import InputError
from jaxres.log.console import console
from jaxres.models import blocks, resnet
from jaxres.paths import check_regular, check_utf8, output_path, read_regular, shell_word, user_path
from jaxres.runtime.environment import cache_dir
from jaxres.train import loop
from jaxres.weights import directories
from jaxres.weights.names import Dialect
from jaxres.weights.network import Pretrained

LONG = 'x' * 300
BAD = ('~nobody_is_called_so/x', 'gs://bucket/x', 's3://bucket/x', f'/tmp/{LONG}', 'a\0b')
CONFIG = str(pathlib.Path(__file__).parents[1] / 'configs/digits.py')
COMMANDS = [  # each with BAD where a path is needed
  'evaluate PATH',
  'evaluate RUN --out PATH',
  'evaluate RUN --data_path PATH',
  'report PATH',
  'report RUN --out PATH',
  'errors PATH',
  'errors RUN --out PATH',
  'errors RUN --json PATH',
  'predict PATH image.png',
  'predict WEIGHTS PATH --mean 0 --std 1 --image_size 8',
  'predict WEIGHTS image.png --class_names PATH',
  'predict jaxres:PATH image.png',
  'predict torchvision:PATH image.png',
  'explain PATH image.png',
  'explain WEIGHTS PATH',
  'explain WEIGHTS image.png --out PATH.png',
  'explain WEIGHTS image.png --maps PATH',
  'explain WEIGHTS image.png --class_names PATH',
  'convert PATH out',
  'convert WEIGHTS PATH',
  'convert WEIGHTS PATH.pth',
  'convert WEIGHTS out --class_names PATH',
  'digest PATH',
  'doctor --workdir PATH',
  'doctor --replay PATH',
  'doctor --config PATH',
  'prepare folder PATH',
  'prepare folder PATH --npz out.npz --image_size 8',
  'prepare folder . --npz PATH.npz --image_size 8',
  'prepare cifar10 --data_dir PATH',
  'prepare cifar10 --archive PATH',
  'prepare cifar10 --npz PATH.npz',
  'prepare tfrecord PATH',
  'show-data --config PATH --out out.png',
  'show-data --config CONFIG --out PATH.png',
  'show-data --config CONFIG --out out.png --config.data.name=folder --config.data.path=PATH',
  'show-data --config CONFIG --out out.png --config.data.name=csv --config.data.path=PATH',
  'show-data --config CONFIG --out out.png --config.data.name=arrays --config.data.path=PATH',
  'show-data --config CONFIG --out out.png --config.data.name=cifar10 --config.data.data_dir=PATH',
  'profile --config PATH',
  'profile --config CONFIG --out PATH',
  'crossval --config CONFIG --workdir PATH',
  'crossval --config PATH --workdir out',
  'crossval --config CONFIG --workdir out --config.init.source=PATH --config.train.dry_run=True',
]


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Iterator[str]:
  """Weights of the least network that `jaxres convert` writes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(resnet.MODELS, 'tiny', functools.partial(resnet.ResNet, (1,), (8,), blocks.BasicBlock))
    options = {'name': 'tiny', 'num_classes': 2, 'stem': 'cifar'}
    model = models.create(**options)
    variables = model.init({'params': jax.random.key(0)}, np.zeros((1, 8, 8, 3), np.float32), train=False)
    actual = Pretrained(dict(variables), options, 3, Dialect.of_model(model.shortcut), 0, None, 'a test')
    directory = tmp_path_factory.mktemp('weights') / 'w'
    directories.write(directory, actual)
    yield str(directory)


@pytest.fixture
def place(tmp_path, monkeypatch) -> pathlib.Path:
  """The working directory: an image, and a run that is needed last of all."""
  monkeypatch.chdir(tmp_path)
  Image.new('RGB', (8, 8)).save('image.png')
  return tmp_path


@pytest.fixture
def alarm() -> Iterator[None]:
  """End a test that waits for a FIFO, or reads without end, after 20 seconds."""

  def stop(*_: object) -> None:
    raise TimeoutError('it reads without end')

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(20)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


SEEN = ['--mean', '0', '--std', '1', '--image_size', '8']  # by the network of WEIGHTS


def error_of(words: list[str], capsys) -> str:
  """Return the one line that a command ends with, or a row of doctor's table."""
  capsys.readouterr()
  if words[0] == 'doctor':
    assert cli.main(words) == 1
    return ' '.join(capsys.readouterr().out.split())
  with pytest.raises(SystemExit) as caught:
    cli.main(words)
  err = capsys.readouterr().err
  assert caught.value.code == 2
  assert err.count('\n') == 1, err
  assert err.startswith('error: ')
  return err


@pytest.mark.parametrize('bad', BAD, ids=['home', 'gs', 's3', 'long', 'null'])
@pytest.mark.parametrize('command', COMMANDS)
def test_a_path_that_cannot_be(command, bad, weights, place, capsys, monkeypatch) -> None:
  monkeypatch.setattr(console, 'width', 1000)
  given = {'PATH': bad, 'CONFIG': CONFIG, 'WEIGHTS': weights, 'RUN': 'run'}
  words = command.split()
  for name, value in given.items():
    words = [word.replace(name, value) for word in words]
  err = error_of(words, capsys)
  expected = {'~': 'no home directory', 'g': 'is not supported', 's': 'is not supported', '/': 'too long', 'a': 'null'}
  assert expected[bad[0]] in err
  assert len(err) < 600 or words[0] == 'doctor'
  assert os.listdir(place) == ['image.png']


@pytest.mark.parametrize('bad', BAD)
def test_a_workdir_that_cannot_be(bad, place) -> None:
  config = command_line.load(CONFIG, ['--config.train.dry_run=True'])
  with pytest.raises(InputError, match='--workdir: '):
    loop.train_and_evaluate(config, bad)
  assert os.listdir(place) == ['image.png']


def test_the_home_directory(tmp_path, monkeypatch) -> None:
  monkeypatch.setenv('HOME', str(tmp_path))
  assert user_path('~/x') == tmp_path / 'x'
  for given in ('./~x', './~'):
    path = user_path(given)
    assert path == pathlib.Path.cwd() / given
    assert user_path(path) == path
  (tmp_path / 'mine.py').write_text('from jaxres import config\ndef get_config():\n  return config.make()\n')
  assert command_line.load('~/mine.py', ['--config.train.epochs=7']).train.epochs == 7


def test_no_home_directory(monkeypatch, place, capsys) -> None:
  def missing(_: object) -> None:
    raise KeyError

  for name in ('HOME', 'XDG_CACHE_HOME', 'TFDS_DATA_DIR'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(pwd, 'getpwuid', missing)
  with pytest.raises(InputError, match='~/x: no home directory is known for ~'):
    user_path('~/x')
  cache = cache_dir('programs')
  assert cache.parent.is_dir()
  assert cache.parent.stat().st_mode & 0o777 == 0o700
  assert cache_dir('weights').parent == cache.parent
  assert cli.main(['show-data', '--config', CONFIG, '--out', 'out.png', '--examples=1', '--draws=1']) is None
  words = ['show-data', '--config', CONFIG, '--out', 'out.png', '--config.data.name=cifar10']
  assert 'data.data_dir: ~/tensorflow_datasets: no home directory' in error_of(words, capsys)


def special(kind: str, path: pathlib.Path) -> str:
  """Make what is no regular file, and return its path."""
  if kind == 'fifo':
    os.mkfifo(path)
  if kind == 'socket':
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
      patch.chdir(path.parent)  # an address is short
      server.bind(path.name)
  if kind == 'directory':
    path.mkdir()
  if kind == 'link':
    path.symlink_to('/dev/zero')
  return '/dev/zero' if kind == 'device' else str(path)


SPECIAL = {
  'fifo': 'a FIFO',
  'socket': 'a socket',
  'link': 'a character device',
  'device': 'a character device',
  'directory': 'a directory|a folder|no images|no weights|no run',
}
READERS = [
  'predict PATH image.png',
  'predict torchvision:PATH image.png',
  'predict WEIGHTS PATH --mean 0 --std 1 --image_size 8',
  'predict WEIGHTS image.png --class_names PATH',
  'explain WEIGHTS PATH --methods=saliency --mean 0 --std 1 --image_size 8',
  'explain WEIGHTS image.png --class_names PATH',
  'convert PATH out',
  'convert WEIGHTS out --class_names PATH',
  'doctor --replay PATH',
  'doctor --config PATH',
  'prepare cifar10 --data_dir . --archive PATH',
  'show-data --config PATH --out out.png',
  'show-data --config CONFIG --out out.png --config.data.name=csv --config.data.path=PATH',
  'show-data --config CONFIG --out out.png --config.data.name=arrays --config.data.path=PATH',
]


@pytest.mark.parametrize('kind', SPECIAL)
@pytest.mark.parametrize('command', READERS)
def test_what_is_no_file_is_not_read(command, kind, weights, place, capsys, monkeypatch, alarm) -> None:
  monkeypatch.setattr(console, 'width', 1000)
  path = special(kind, place / 'special')
  words = [word.replace('PATH', path).replace('WEIGHTS', weights).replace('CONFIG', CONFIG) for word in command.split()]
  if words[0] in ('explain', 'predict') and words[2] == path and kind != 'directory':  # one image of many
    assert cli.main(words) == 2
    err = capsys.readouterr().err
  else:
    err = error_of(words, capsys)
  assert any(word in err for word in SPECIAL[kind].split('|')), err
  assert not (place / 'out').exists()


def test_files_of_proc_say_that_they_are_empty(weights, place, capsys, monkeypatch, alarm) -> None:
  monkeypatch.setattr(console, 'width', 1000)
  assert cli.main(['predict', weights, '/proc/self/pagemap', '/proc/cpuinfo', *SEEN]) == 2
  assert capsys.readouterr().err.count('cannot decode the image') == 2
  assert 'the file is empty' in error_of(['convert', '/proc/self/pagemap', 'out'], capsys)
  assert 'the file is empty' in error_of(['doctor', '--config', '/proc/cpuinfo'], capsys)
  assert '0 names' in error_of(['predict', weights, 'image.png', '--class_names', '/proc/cpuinfo'], capsys)


def test_a_file_is_bounded(tmp_path) -> None:
  file = tmp_path / 'sparse'
  with file.open('wb') as stream:
    stream.truncate(1 << 40)
  with pytest.raises(OSError, match='1,099,511,627,776 bytes; expected at most 1,024'):
    read_regular(file, 1024)
  file.write_bytes(b'abc')
  assert read_regular(file, 3) == b'abc'
  assert check_regular(file) == 3


def test_a_device_is_not_replaced_by_a_file(place, capsys) -> None:
  os.mkfifo('fifo')
  for path, actual in (('fifo', 'a FIFO'), ('/dev/null', 'a character device'), ('.', 'a directory')):
    with pytest.raises(InputError, match=f'--out: .* is {actual}; expected the name of a file'):
      output_path(path, '--out')
  assert output_path('image.png', '--out') == pathlib.Path('image.png')
  assert '--out: /dev/null is a character device' in error_of(['evaluate', 'run', '--out', '/dev/null'], capsys)


PARTS = {
  'a file of a run': ['r/config.json', 'r/data.json', 'r/environment.json', 'r/metrics.jsonl', 'link', 's/seeds.json'],
  'a part of a checkpoint': ['r/checkpoints/6/about', 'r/checkpoints/6/d/x'],
  'a part of converted weights': ['w/model.json', 'w/weights.safetensors'],
}


@pytest.mark.parametrize(('kind', 'name'), [(kind, name) for kind, names in PARTS.items() for name in names])
def test_what_a_run_is_read_from_is_not_replaced(kind: str, name: str, tmp_path) -> None:
  files = [tmp_path / each for names in PARTS.values() for each in names if each != 'link']
  for file in files:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{}')
  (tmp_path / 'link').symlink_to('r/config.json')
  with pytest.raises(InputError, match=f'--out: .* is {kind}; expected the name of a file'):
    output_path(tmp_path / name, '--out')
  (tmp_path / 'r/report.html').write_text('')
  (tmp_path / 'config.json').write_text('{}')
  for free in ('r/report.html', 'r/new.json', 'config.json', 'w/scores.json'):
    assert output_path(tmp_path / free, '--out') == tmp_path / free


def test_a_path_that_is_not_utf8(tmp_path) -> None:
  path = tmp_path / os.fsdecode(b'caf\xe9')
  assert user_path(path) == path
  with pytest.raises(InputError, match='not UTF-8'):
    check_utf8(path, '--workdir')
  assert check_utf8(tmp_path) == tmp_path


@pytest.mark.parametrize('word', ['plain', 'a b', "it's", b'caf\xe9', 'new\nline', '\x1b[31m', 'a\\b\n', "'\n", '日本'])
def test_a_word_for_bash(word) -> None:
  word = os.fsdecode(word)
  quoted = shell_word(word)
  assert quoted.isprintable()
  out = subprocess.run(['bash', '-c', f'printf %s {quoted}'], capture_output=True, check=True).stdout
  assert os.fsdecode(out) == word
