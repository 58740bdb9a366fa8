import importlib
import os
import shlex
import subprocess
import sys
import types

import pytest

import jaxres
from jaxres import cli, command_line
from jaxres.data.prepare import cifar as prepare_cifar
from jaxres.data.sources import tfds
from jaxres.errors import InputError
from tests.helpers import ROOT


@pytest.fixture
def tool(monkeypatch):
  """Make a tool `echo` whose run can be replaced."""
  module = types.ModuleType('echo_tool')
  module.add_arguments = lambda parser: parser.add_argument('--word', default='x')
  module.run = lambda args: print(args.word)
  monkeypatch.setitem(sys.modules, 'echo_tool', module)
  monkeypatch.setitem(cli.TOOLS, 'echo', cli.Tool('echo_tool', 'say a word'))
  return module


def run_to_end(capsys, *words):
  """Return the exit code and the one line that a failing call prints."""
  with pytest.raises(SystemExit) as caught:
    cli.main(words)
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.startswith(('error: ', 'interrupted'))
  assert captured.err.count('\n') == 1
  return caught.value.code, captured.err


def python(*args):
  return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize('words', [[], ['--help'], ['-h']])
def test_alone_it_prints_the_table(capsys, words):
  with pytest.raises(SystemExit) as caught:
    cli.main(words)
  assert not caught.value.code
  shown = ' '.join(capsys.readouterr().out.split())
  for name, row in cli.TOOLS.items():
    assert f'{name} {row.help}' in shown


def test_version(capsys):
  with pytest.raises(SystemExit) as caught:
    cli.main(['--version'])
  assert not caught.value.code
  assert capsys.readouterr().out == f'jaxres {jaxres.__version__}\n'


def test_a_tool_runs_with_its_arguments(capsys, tool):
  assert cli.main(['echo', '--word', 'hello']) is None
  assert capsys.readouterr().out == 'hello\n'
  tool.run = lambda args: 3
  assert cli.main(['echo']) == 3


def test_bad_input_is_one_line_and_status_2(capsys, tool):
  def bad(args):
    raise InputError('what, where\nand how to fix it')

  tool.run = bad
  assert run_to_end(capsys, 'echo') == (2, 'error: what, where and how to fix it\n')


def test_an_interrupt_is_one_line_and_status_130(capsys, tool):
  def interrupt(args):
    raise KeyboardInterrupt

  tool.run = interrupt
  assert run_to_end(capsys, 'echo') == (130, 'interrupted\n')


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (['prepar'], "unknown tool 'prepar'; did you mean 'prepare'?"),
    (['xyz'], "unknown tool 'xyz'; known: echo, prepare"),
    (['--nope'], 'unrecognized arguments: --nope'),
    (['echo', '--nope'], 'unrecognized arguments: --nope'),
    (['echo', '--wor', 'x'], 'unrecognized arguments: --wor'),
    (
      ['prepare'],
      'required: {cifar10,cifar100,mnist,fashion_mnist,kmnist,eurosat,folder,tfrecord}; `jaxres prep',
    ),
    (['prepare', 'cifar_10'], "did you mean 'cifar10'?"),
    (['prepare', 'cifar10', '--npz', 'x.npz', '--data_dir', 'd'], 'give one of them'),
    (['prepare', 'cifar10', 'photos'], 'jaxres prepare cifar10: it takes no photos'),
    (['prepare', 'tfrecord', 'd', '--max_bad', '0'], 'jaxres prepare tfrecord: it takes no --max_bad'),
    (['prepare', 'folder', '--name', 'x'], 'jaxres prepare folder: it needs DIR'),
    (['prepare', 'folder', 'p', '--name', 'x', '--npz', 'x.npz', '--image_size', '8'], 'give one of them'),
    (['prepare', 'folder', 'photos', '--npz', 'x.npz'], '--npz, --image_size: they go together'),
    (['prepare', 'folder', 'photos', '--name', 'x', '--image_size', '8'], 'go together'),
    (['prepare', 'tfrecord'], 'jaxres prepare tfrecord: it needs DIR'),
  ],
)
def test_wrong_words_are_one_line_and_status_2(capsys, tool, monkeypatch, words, expected):
  rows = {name: cli.TOOLS[name] for name in ('echo', 'prepare')}
  monkeypatch.setattr(cli, 'TOOLS', rows)
  status, line = run_to_end(capsys, *words)
  assert status == 2
  assert expected in line


@pytest.mark.parametrize('name', cli.TOOLS)
def test_each_row_is_a_tool(name, capsys):
  module = importlib.import_module(cli.TOOLS[name].module)
  assert callable(module.run)
  with pytest.raises(SystemExit) as caught:
    cli.main([name, '--help'])
  assert not caught.value.code
  assert f'usage: jaxres {name}' in capsys.readouterr().out


def test_python_m_jaxres():
  assert python('-m', 'jaxres', '--version') == f'jaxres {jaxres.__version__}\n'


@pytest.mark.parametrize(
  ('words', 'place', 'flags'),
  [
    (['cifar10'], '/sets/cifar10/3.0.2', ''),
    (['cifar100'], '/sets/cifar100/3.0.2', ' --config.data.name=cifar100'),
    (
      ['cifar10', '--data_dir', '/my sets'],
      '/my sets/cifar10/3.0.2',
      " --config.data.data_dir='/my sets'",
    ),
    (
      ['cifar100', '--npz', 'c.npz'],
      'c.npz',
      ' --config.data.name=arrays --config.data.path=c.npz',
    ),
  ],
)
def test_prepare_prints_the_command_that_trains(capsys, monkeypatch, words, place, flags):
  monkeypatch.setenv('TFDS_DATA_DIR', '/sets')
  monkeypatch.setattr(prepare_cifar, 'prepare', lambda name, data_dir, archive: tfds.root(data_dir) / name / '3.0.2')
  monkeypatch.setattr(prepare_cifar, 'prepare_npz', lambda name, file, archive: file)
  assert cli.main(['prepare', *words]) is None
  *lines, command = capsys.readouterr().out.splitlines()
  assert lines == [f'{words[0]} is in {place}']
  assert command == (
    f'train on it: python main.py --config configs/resnet20_cifar_quick.py --workdir runs/quick{flags}'
  )
  config, *overrides = [word for word in shlex.split(command) if word.startswith(('configs/', '--config.'))]
  asked = command_line.load(str(ROOT / config), overrides).data
  assert asked.path == place if '--npz' in words else place.startswith(f'{asked.data_dir or "/sets"}/{asked.name}/')


def test_no_network_is_one_line_and_status_2(capsys, monkeypatch, tmp_path):
  url = 'http://127.0.0.1:9/set.tar.gz'  # the discard port: nothing listens
  monkeypatch.setitem(prepare_cifar.PUBLISHED, 'cifar10', prepare_cifar.PUBLISHED['cifar10']._replace(url=url))
  status, line = run_to_end(capsys, 'prepare', 'cifar10', '--data_dir', os.fspath(tmp_path))
  assert status == 2
  assert f'{url}: cannot download' in line
