"""main.py as a user runs it, in a separate process."""

import json
import os
import pathlib
import signal
import subprocess
import time

import numpy as np
import pytest
from absl import logging

from jaxres import cli
from tests.helpers import MAIN_ENVIRONMENT, ROOT, main_command, rows, run_main
from tests.train.runs import final_state

pytestmark = pytest.mark.curves

DIGITS = ('--config', 'configs/digits.py')
TINY = ('--config', 'tests/faults/tiny.py', '--config.train.epochs=12')  # a run of seconds


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
  workdir = tmp_path_factory.mktemp('main') / 'run'
  return workdir, run_main(*TINY, '--workdir', str(workdir))


def test_a_run_prints_what_a_person_wants(finished) -> None:
  workdir, done = finished
  assert done.returncode == 0, done.stderr
  assert done.stderr == ''
  for wanted in (
    'stage1',
    'total',
    '1,362',  # 3x3x1x8 + 2x(3x3x8x8) of convolutions, 3x16 of BatchNorm, 8x10 + 10 of the head
    'train/loss',
    'test/top1',
    'images_per_s',
    f'curves: {workdir}/curves.png',
  ):
    assert wanted in done.stdout
  assert 'next: jaxres train --config resnet20_cifar_quick' in done.stdout
  assert (workdir / 'curves.png').stat().st_size > 10_000


def test_a_killed_run_continues_to_the_same_weights(finished, tmp_path) -> None:
  arguments = main_command(*TINY, '--workdir', str(tmp_path / 'run'))
  process = subprocess.Popen(arguments, cwd=ROOT, env=MAIN_ENVIRONMENT, stdout=subprocess.DEVNULL)
  deadline = time.monotonic() + 200
  committed = lambda: [path for path in (tmp_path / 'run/checkpoints').glob('*') if path.name.isdigit()]
  while not committed() and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  done = run_main(*TINY, '--workdir', str(tmp_path / 'run'))
  assert done.returncode == 0, done.stderr
  assert 'continuing' in done.stdout
  a, b = final_state(tmp_path / 'run'), final_state(finished[0])
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  assert rows(tmp_path / 'run') == rows(finished[0])


BAD = {
  'misspelled field': ([*DIGITS, '--config.optim.lrr=1'], "unknown field 'lrr' of section 'optim'; did you mean 'lr'?"),
  'misspelled section': ([*DIGITS, '--config.optm.lr=1'], "unknown config section 'optm'; did you mean 'optim'?"),
  'wrong type': ([*DIGITS, '--config.optim.lr=fast'], "--config.optim.lr: expected float, found 'fast'"),
  'unknown model': ([*DIGITS, '--config.model.name=resnet81'], "unknown model 'resnet81'; did you mean 'resnet18'?"),
  'unknown optimizer': ([*DIGITS, '--config.optim.name=sdg'], "optim.name: unknown value 'sdg'; did you mean 'sgd'?"),
  'unknown data set': ([*DIGITS, '--config.data.name=digit'], "unknown data set 'digit'; did you mean 'digits'?"),
  'missing config': (['--config', 'configs/digit.py'], "no such file: configs/digit.py; did you mean 'digits.py'?"),
  'no config': ([], 'DATA or --config: missing'),
  'unknown flag': ([*DIGITS, '--foo=1'], 'unrecognized arguments: --foo=1'),
  'a field without its section': (
    [*DIGITS, '--epoch', '3'],
    'unrecognized arguments: --epoch; did you mean --config.train.epochs=3?',
  ),
  'stray word': ([*DIGITS, 'foo'], 'DATA: foo, but --config configs/digits.py has its data'),
  'no such data': (['foo'], 'DATA: no such folder, file or data set: foo'),
  'path of digits': ([*DIGITS, '--config.data.path=photos'], "data.name='digits' reads no file"),
  'batch size 0': ([*DIGITS, '--config.data.batch_size=0'], 'data.batch_size: expected 1 or more, found 0'),
  'missing data_dir': (
    ['--config', 'configs/resnet20_cifar_quick.py', '--config.data.download=False', '--config.data.data_dir=/no/such'],
    '/no/such',
  ),
  'missing npz': (
    [*DIGITS, '--config.data.name=arrays', '--config.data.path=no.npz'],
    'data.path: no such file: no.npz',
  ),
}


def fail(capsys: pytest.CaptureFixture, *arguments: str) -> str:
  """Return the one line that main.py ends with, called in this process."""
  verbosity = logging.get_verbosity()
  try:
    with pytest.raises(SystemExit) as caught, pytest.MonkeyPatch.context() as patch:
      patch.chdir(ROOT)
      patch.setenv('XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))  # which the command line adds to
      cli.main(['train', *arguments])
  finally:
    logging.set_verbosity(verbosity)
  output = capsys.readouterr().err
  assert caught.value.code == 2
  assert output.startswith('error: ')
  assert output.count('\n') == 1
  return output


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_line_and_leaves_nothing(name: str, tmp_path, capsys) -> None:
  arguments, message = BAD[name]
  assert message in fail(capsys, *arguments, '--workdir', str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'name', ['misspelled field', 'missing npz']
)  # the one before JAX is there, the other behind it
def test_the_process_ends_with_that_line_and_status_2(name: str, tmp_path) -> None:
  arguments, message = BAD[name]
  done = run_main(*arguments, '--workdir', str(tmp_path / 'run'))
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('error: ')
  assert message in done.stderr
  assert done.stderr.count('\n') == 1


def test_a_config_file_that_fails_to_load(tmp_path, capsys) -> None:
  broken = tmp_path / 'broken.py'
  words = ('--config', str(broken), '--workdir', str(tmp_path / 'run'))
  broken.write_text('from jaxres import config\ndef get_config():\n  return config.make(optim=dict(lrr=1.0))\n')
  assert fail(capsys, *words) == "error: optim.lrr: unknown field; did you mean 'lr'?\n"
  broken.write_text('def get_config():\n  return {"optim": {"lr": 0.1}}\n')
  output = fail(capsys, *words, '--config.data.name=digits')
  assert "a dict without the section 'data', which cannot be overridden" in output
  broken.write_text('x = 1\n')
  assert 'the file has no function get_config()' in fail(capsys, *words)
  broken.write_text('def get_config():\n  return undefined\n')
  expected = "error: --config: the file fails to load, line 2: NameError: name 'undefined' is not defined\n"
  assert fail(capsys, *words) == expected


def test_another_config_does_not_touch_a_finished_run(finished, capsys) -> None:
  workdir, _ = finished
  before = json.loads((workdir / 'config.json').read_text())
  output = fail(capsys, *TINY, '--workdir', str(workdir), '--config.optim.lr=0.5', '--config.train.seed=3')
  assert (
    'holds a run of another config: optim.lr was 0.1 there and is 0.5 now, train.seed was 0 there and is 3 now'
    in output
  )
  assert json.loads((workdir / 'config.json').read_text()) == before


def test_debug_shows_the_traceback(tmp_path) -> None:
  done = run_main(*DIGITS, '--workdir', str(tmp_path / 'run'), '--config.data.batch_size=0', '--debug')
  assert done.returncode != 0
  assert 'Traceback' in done.stderr


def test_help() -> None:
  done = run_main('--help')
  assert '--config.section.field=value' in done.stdout
  assert '--workdir' in done.stdout
