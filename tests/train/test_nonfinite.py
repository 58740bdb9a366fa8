"""A step that is not finite is not taken: the state stays as it was before, is never saved, and the step is named."""

import pathlib

import numpy as np
import pytest

from jaxres import cli, optim
from jaxres.checkpoint import digests, reader, steps
from jaxres.data import sampler
from jaxres.errors import InputError
from jaxres.log import run_log as run_log_lib
from jaxres.models import resnet
from jaxres.train import loop, nonfinite
from jaxres.train.nonfinite import NotFiniteError
from tests.helpers import make_arrays, merge

WHITE = int(sampler.train_indices(0, 3, 16, 96)[5])  # the example that poisons: others are in flight behind its step


@pytest.fixture
def poisoned(config: dict, npz, request, monkeypatch) -> dict:
  """A config whose batch statistics, gradient or loss are not finite where a batch has the white image."""
  from tests.faults import poisoned as module

  monkeypatch.setenv('JAXRES_POISON', request.param)
  monkeypatch.setitem(resnet.MODELS, 'poisoned', None)
  monkeypatch.setitem(resnet.MODELS, 'tiny', resnet.MODELS['tiny'])
  module.get_config()
  arrays = make_arrays()
  arrays['train_x'][WHITE] = 255
  return merge(config, model={'name': 'poisoned'}, data={'path': npz(**arrays)}, augment={'crop_pad': 0})


def first_step(size: int = 96) -> int:
  return next(step for step in range(100) if WHITE in sampler.train_indices(0, step, 16, size))


EXPECTED = {'pixel': 'batch_stats/stem/bn/mean', 'gradient': 'gradients/stem/bn/bias', 'overflow': 'loss'}


@pytest.mark.parametrize(('poisoned', 'scan'), [('pixel', 1), ('gradient', 2), ('overflow', 1)], indirect=['poisoned'])
def test_a_step_that_is_not_finite_is_named_and_run_again(poisoned, scan: int, tmp_path, request, capsys) -> None:
  kind = request.node.callspec.params['poisoned']
  config = merge(poisoned, train={'epochs': 1, 'scan_steps': scan, 'log_every_steps': 4, 'eval_every_epochs': 0.17})
  bad = first_step()
  with pytest.raises(NotFiniteError, match=f'step {bad} is not finite: loss .*, first {EXPECTED[kind]};') as error:
    loop.train_and_evaluate(config, tmp_path / 'run')
  path = tmp_path / f'run/bad_step_{bad}.npz'
  assert f'jaxres doctor --replay {path}' in str(error.value)
  then, now, ids = nonfinite.replay(path)
  assert WHITE in ids
  assert (then.step, then.bad, then.counts) == (now.step, now.bad, now.counts)
  np.testing.assert_equal(now.loss, then.loss)
  for step in steps.list_steps(tmp_path / 'run/checkpoints'):
    saved = reader.read(tmp_path / f'run/checkpoints/{step}')
    assert step <= bad
    assert all(digests.is_finite(array) for array in saved.state.values())
  if kind == 'pixel':
    assert cli.main(['doctor', '--replay', str(path)]) == 1
    assert f'step {bad} is not finite' in ' '.join(capsys.readouterr().out.replace('│', '').split())


@pytest.mark.parametrize('poisoned', ['pixel'], indirect=True)
def test_the_state_stays_as_before_the_step_to_the_bit(poisoned, tmp_path, monkeypatch) -> None:
  config = merge(poisoned, train={'epochs': 1, 'log_every_steps': 100, 'ema': 0.9})
  states, probe = [], nonfinite.probe
  monkeypatch.setattr(nonfinite, 'probe', lambda f, state, *args: states.append(state) or probe(f, state, *args))
  with pytest.raises(NotFiniteError):
    loop.train_and_evaluate(config, tmp_path / 'run')
  bad = first_step()
  assert bad == 3  # of 6: others were in flight behind it
  short = merge(config, train={'overfit_one_batch': False, 'epochs': 1, 'eval_every_epochs': bad / 6})
  with pytest.raises(NotFiniteError):
    loop.train_and_evaluate(short, tmp_path / 'short')  # saves just before
  saved = reader.read(tmp_path / f'short/checkpoints/{bad}')
  actual = {name: digests.leaf_digest(array) for name, array in digests.leaves(states[0].saved_fields)}
  assert actual == saved.digests


@pytest.mark.parametrize('poisoned', ['pixel'], indirect=True)
def test_a_rollback_halves_the_rate_and_is_remembered(poisoned, tmp_path, monkeypatch, capsys) -> None:
  config = merge(poisoned, train={'epochs': 1, 'max_rollbacks': 2, 'eval_every_epochs': 0.17})
  made, make_setup = [], loop.make_setup
  monkeypatch.setattr(loop, 'make_setup', lambda *args, **more: made.append(make_setup(*args, **more)) or made[-1])
  with pytest.raises(NotFiniteError):
    loop.train_and_evaluate(config, tmp_path / 'run')
  assert [setup.train_steps._cache_size() for setup in made] == [1]  # another rate is another argument
  output = capsys.readouterr().out
  assert output.count('where there is none, with 0.5 times the learning rate') == 1
  assert output.count('with 0.25 times the learning rate') == 1


@pytest.mark.parametrize('poisoned', ['pixel'], indirect=True)
def test_a_bad_step_is_named_where_its_file_cannot_be_written(poisoned, tmp_path, monkeypatch) -> None:
  def refuse(*_: object) -> None:
    raise InputError('the disk is full: cannot write bad_step_3.npz')

  monkeypatch.setattr(nonfinite, 'write', refuse)
  with pytest.raises(
    NotFiniteError, match=f'step {first_step()} is not finite: .*; no file of it could be written: the'
  ):
    loop.train_and_evaluate(merge(poisoned, train={'epochs': 1}), tmp_path / 'run')


def test_a_constant_rate_is_logged_as_it_is_given(config: dict, tmp_path) -> None:
  config = merge(config, optim={'schedule': 'constant'}, train={'epochs': 1})
  assert loop.train_and_evaluate(config, tmp_path / 'run')['train/lr'] == 0.1  # not float32's 0.10000000149


def test_half_the_rate_moves_half_as_far() -> None:
  params = {'w': {'kernel': np.float32([1.0, 2.0]), 'scale': np.float32([1.0, 2.0])}}
  moves = []
  for factor in (1.0, 0.5):
    tx, _ = optim.make(params, 100, 10.0, lr=0.1, lr_scale=np.float32(factor))
    updates, _ = tx.update(params, tx.init(params), params)
    moves.append(updates['w']['kernel'])
  np.testing.assert_array_equal(moves[1], moves[0] / 2)
  assert (np.abs(moves[0]) > 0.01).all()


def test_a_spike_of_the_loss_is_warned_of(tmp_path: pathlib.Path, capsys) -> None:
  with run_log_lib.RunLog(tmp_path, 0, 9, 1.0, spike_factor=3.0) as run_log:
    for step, loss in enumerate([1.0, 1.1, 0.9, 1.0, 1.0, 1.2, 3.5, 1.0], 1):
      run_log.write(step, {'train/loss': loss})
  output = [line for line in capsys.readouterr().out.splitlines() if line.startswith('warning')]
  assert output == ['warning: the training loss is 3.5 at step 7, 3.5 times its median']
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 8


def test_a_file_that_is_no_bad_step(tmp_path, capsys) -> None:
  np.savez(tmp_path / 'x.npz', a=1)
  assert cli.main(['doctor', '--replay', str(tmp_path / 'x.npz')]) == 1
  assert 'not a file of a bad step' in ' '.join(capsys.readouterr().out.replace('│', '').split())
  assert cli.main(['doctor', '--replay', str(tmp_path / 'none.npz')]) == 1
  assert 'no such file' in ' '.join(capsys.readouterr().out.replace('│', '').split())
