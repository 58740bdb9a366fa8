"""A run that is stopped anywhere ends with the same digest as one that never was."""

import itertools
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from jaxres import data, evaluate
from jaxres import workdir as workdir_lib
from jaxres.checkpoint import steps as steps_lib
from jaxres.runtime import signals
from jaxres.train import loop
from tests.helpers import merge, rows
from tests.train.runs import digest_of, stop


@pytest.mark.parametrize('options', [{'ema': 0.9, 'recalibrate_bn': 1}, {'scan_steps': 2, 'log_every_steps': 4}])
def test_a_run_stopped_anywhere_ends_with_the_same_digest(config: dict, tmp_path, monkeypatch, options: dict) -> None:
  config = merge(config, data={'val': 0.25}, train={'epochs': 3, **options})
  loop.train_and_evaluate(config, tmp_path / 'whole')
  steps = [(2, False), (4, False), (4, True), (9, True)]  # in the midst of an epoch, and at the end of one of 4.5 steps
  for step, evaluating in steps:
    output = stop(config, tmp_path / 'parts', monkeypatch, step, evaluating=evaluating)
    assert output == f'SIGTERM: step {step} is saved; the same command continues the run'
    assert workdir_lib.read_step(tmp_path / 'parts', None)[0] == step
  loop.train_and_evaluate(config, tmp_path / 'parts')
  assert digest_of(tmp_path / 'parts') == digest_of(tmp_path / 'whole')
  assert rows(tmp_path / 'parts') == rows(tmp_path / 'whole')
  assert steps_lib.list_steps(tmp_path / 'parts/checkpoints') == steps_lib.list_steps(tmp_path / 'whole/checkpoints')


def test_an_evaluation_that_is_complete_when_a_signal_comes_is_kept(config: dict, tmp_path, monkeypatch) -> None:
  config = merge(config, data={'val': 0.25}, train={'epochs': 3, 'ema': 0.9})
  loop.train_and_evaluate(config, tmp_path / 'whole')
  real, done = evaluate.evaluate, []

  def ask_behind(*args):
    scores = real(*args)
    done.append(1)
    if len(done) == 2 * 4:  # two splits, by the weights and by their average: the second evaluation is complete
      os.kill(os.getpid(), signal.SIGTERM)
    return scores

  with monkeypatch.context() as patch, pytest.raises(signals.RunPreemptedError, match='step 9 is saved'):
    patch.setattr(evaluate, 'evaluate', ask_behind)
    loop.train_and_evaluate(config, tmp_path / 'parts')
  assert rows(tmp_path / 'parts')[-1]['step'] == 9
  assert 'ema/test/top1' in rows(tmp_path / 'parts')[-1]
  done.clear()
  with monkeypatch.context() as patch:
    patch.setattr(evaluate, 'evaluate', ask_behind)
    loop.train_and_evaluate(config, tmp_path / 'parts')
  assert len(done) == 4  # the last alone
  assert digest_of(tmp_path / 'parts') == digest_of(tmp_path / 'whole')
  assert rows(tmp_path / 'parts') == rows(tmp_path / 'whole')


def test_nothing_is_read_behind_a_signal(config: dict) -> None:
  """No batch of any split, not even the first; where the signal comes behind a batch, none but those ahead of it."""
  dataset = data.load(**merge(config, data={'val': 0.25, 'pipeline': 'stream'})['data'])
  read: list[str] = []
  for name in ('val', 'test'):
    pipeline = getattr(dataset, name)
    get = pipeline.examples.get
    pipeline.examples = pipeline.examples._replace(
      get=lambda index, draws, name=name, get=get: read.append(name) or get(index, draws)
    )
  step = lambda variables, device_data, feed: {'loss': 0.0, 'count': float(feed['mask'].sum())}
  state = types.SimpleNamespace(variables={'params': 1}, ema={'params': 1})
  assert not evaluate.evaluate_state({'': step, 'tta/': step}, state, dataset, 8, None, lambda: True)
  assert read == []
  answers = itertools.chain([False], itertools.repeat(True))
  assert evaluate.evaluate_state({'': step, 'tta/': step}, state, dataset, 8, None, lambda: next(answers)) is None
  assert set(read) == {'val'}
  assert evaluate.evaluate_state({'': step}, state, dataset, 8)['ema/test/loss'] == 0.0


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
from jaxres.runtime import signals
with signals.exit_on_preemption(), signals.guard_preemption() as watch:
  print('ready', flush=True)
  while watch.number is None:
    time.sleep(0.01)
  print('asked', flush=True)
  time.sleep(60 if sys.argv[1] == 'twice' else 0.2)
  raise watch.make_error(7)
"""


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize('times', ['once', 'together', 'twice'])
def test_the_exit_status(number: signal.Signals, status: int, times: str) -> None:
  if number == signal.SIGHUP and times == 'twice':
    times = 'together'  # a closed terminal sends it again and again, which ends nothing
  process = subprocess.Popen(
    [sys.executable, '-c', PROGRAM, times], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(number)
  if times == 'together':  # as `timeout` does
    process.send_signal(number)
  assert process.stdout.readline() == 'asked\n'
  if times == 'twice':
    time.sleep(signals.SAME_SECONDS + 0.2)
    process.send_signal(number)
  _, output = process.communicate(timeout=50)
  assert process.returncode == status
  again = 'stopped at once, by a second signal; the same command continues from the last save\n'
  assert output == (
    again if times == 'twice' else f'{number.name}: step 7 is saved; the same command continues the run\n'
  )


def test_nohup_is_kept() -> None:
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals.guard_preemption() as watch:
      os.kill(os.getpid(), signal.SIGHUP)
      assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
      assert watch.number is None
  finally:
    signal.signal(signal.SIGHUP, before)
