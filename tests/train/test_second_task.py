"""A task that is no classification, the brightness of an image, which lives in this file alone.

Its loss has what no loss of classification has: the step, arrays beside the batch, two views of each example. Run as a
program it trains on as many devices as the environment says: python tests/train/test_second_task.py WORK.json
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxres import checkpoint, cli, metrics, predict, tasks
from jaxres import config as config_lib
from jaxres.analysis import compare, runs
from jaxres.data import augment, types
from jaxres.data.augment import normalize
from jaxres.errors import InputError
from jaxres.report import run_report
from jaxres.runtime import sharding
from jaxres.train import loop
from jaxres.train.plan import Progress
from jaxres.train.setup import Setup, make_setup
from jaxres.train.step import Hyperparameters, step_key
from tests.helpers import ROOT, make_arrays, merge, rows
from tests.train.runs import digest_of, stop

pytestmark = pytest.mark.eight_devices

BINS, FULL_AGREEMENT = 4, 8  # of the labels; steps until the views' agreement counts in full


def brightness(**_: Any) -> tasks.Task:
  """Return the task of telling how bright an image is, float32 ``[B]``."""

  def loss(outputs: jax.Array, batch: dict, step: jax.Array, extras: dict) -> jax.Array:
    one, other = outputs[..., 0]
    label = jnp.broadcast_to(batch['label'], outputs.shape[:2])  # [2, B] where mixed
    weight = extras['weights'][jnp.clip(label[0] * BINS, 0, BINS - 1).astype(jnp.int32)]
    agreement = jnp.minimum(1.0, step / FULL_AGREEMENT) * (one - other) ** 2
    return weight * ((one - label[0]) ** 2 + (other - label[1]) ** 2) / 2 + agreement

  def sums(loss: jax.Array, outputs: jax.Array, batch: dict) -> metrics.Sums:
    error = outputs.reshape(-1, *outputs.shape[-2:]).mean(0)[:, 0] - batch['label'].reshape(-1, len(loss)).mean(0)
    keep = batch.get('mask', jnp.ones(len(loss), bool))
    values = {'loss': loss, 'squared': error**2, 'absolute': jnp.abs(error), 'count': jnp.ones(len(loss))}
    return {name: jnp.where(keep, value, 0).sum(dtype=jnp.float32) for name, value in values.items()}

  return tasks.Task(
    labels=types.NUMBERS,
    num_outputs=lambda info: 1,
    loss=loss,
    eval_loss=lambda outputs, batch: (outputs[:, 0] - batch['label']) ** 2,
    sums=sums,
    metrics={
      'loss': metrics.LOSS,
      'rmse': metrics.Metric('root mean square error', 'positive'),
      'mae': metrics.Metric('mean error', 'positive'),
    },
    monitor='rmse',
    answer=lambda outputs: outputs,
    average=lambda each: each.mean(0),
    describe=lambda outputs, names, at_most: tasks.Answer(
      {names[0]: float(outputs[0])}, [f'{names[0]} {outputs[0]:.3f}']
    ),
    means=lambda total: {
      'loss': total['loss'] / total['count'],
      'rmse': (total['squared'] / total['count']) ** 0.5,
      'mae': total['absolute'] / total['count'],
    },
    make_extras=lambda dataset: {'weights': np.linspace(1.0, 2.0, BINS, dtype=np.float32)},
    views=2,
  )


def write_data(path: pathlib.Path) -> str:
  """Write images and, as labels, their mean level on the scale 0..1."""
  arrays = make_arrays()
  rng = np.random.default_rng(1)
  for split in ('train', 'test'):
    level = rng.uniform(0.2, 1.0, (len(arrays[f'{split}_x']), 1, 1, 1))
    arrays[f'{split}_x'] = np.rint(arrays[f'{split}_x'] * level).astype(np.uint8)
    arrays[f'{split}_y'] = arrays[f'{split}_x'].mean((1, 2, 3)) / 255
  np.savez(path, **arrays, class_names=np.array(['brightness']))
  return str(path)


@pytest.fixture
def job(config: dict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict:
  """A config of 3 epochs of 4.5 steps of the task, which is a row of the table for the length of a test."""
  monkeypatch.setitem(tasks.TASKS, 'brightness', brightness)
  fields = {'task': 'brightness', 'epochs': 3}
  data = {'path': write_data(tmp_path / 'bright.npz'), 'val': 0.25}
  return merge(config, data=data, train=fields, optim={'lr': 0.02})


MODES = {
  'resident': {},
  'stream': {'data': {'pipeline': 'stream'}},
  'scanned': {'train': {'scan_steps': 2, 'log_every_steps': 4}},
  'accumulated, averaged': {'train': {'accumulate': 2, 'ema': 0.9}},
  'streamed, scanned, mixed': {
    'data': {'pipeline': 'stream'},
    'train': {'scan_steps': 2, 'log_every_steps': 4, 'ema': 0.5},
    'augment': {'mixup': 0.5, 'cutmix': 1.0},
  },
}


@pytest.mark.parametrize('mode', MODES)
def test_it_trains_and_a_run_stopped_anywhere_ends_with_the_same_digest(job, tmp_path, monkeypatch, mode: str) -> None:
  job = merge(job, **{section: job[section] | fields for section, fields in MODES[mode].items()})
  values = loop.train_and_evaluate(job, tmp_path / 'whole')
  for step, evaluating in [(2, False), (4, True), (9, False)]:
    output = stop(job, tmp_path / 'parts', monkeypatch, step, evaluating=evaluating)
    assert output == f'SIGTERM: step {step} is saved; the same command continues the run'
  again = loop.train_and_evaluate(job, tmp_path / 'parts')
  assert digest_of(tmp_path / 'parts') == digest_of(tmp_path / 'whole')
  assert rows(tmp_path / 'parts') == rows(tmp_path / 'whole')
  prefixes = ['val', 'test'] + ['ema/val', 'ema/test'] * ('ema' in job['train'])
  expected = {f'{prefix}/{name}' for prefix in ('train', *prefixes) for name in ('loss', 'rmse', 'mae')}
  expected |= {'train/lr', 'train/images_per_s'}
  for name in ('val/rmse', 'test/mae'):
    assert values[name] == again[name]
  logged = {name for row in rows(tmp_path / 'whole') for name in row}
  assert logged - {'step', 'epoch'} == expected - {'train/images_per_s'}  # which ``rows`` leaves out


def test_it_learns_and_the_best_is_the_least(job: dict, tmp_path) -> None:
  job = merge(job, train={**job['train'], 'epochs': 16}, optim={'lr': 0.05}, augment={'crop_pad': 0})
  values = loop.train_and_evaluate(job, tmp_path / 'run')
  with np.load(job['data']['path']) as content:
    labels = content['test_y']
  assert values['test/rmse'] < 0.5 * labels.std()  # of who always says the mean
  measured = [row['val/rmse'] for row in rows(tmp_path / 'run') if 'val/rmse' in row]
  assert len(measured) == 16
  assert values['best/val/rmse'] == pytest.approx(min(measured), rel=1e-6)
  assert min(measured) < measured[0]
  with checkpoint.open_manager(tmp_path / 'run/checkpoints') as manager:
    kept = manager.all_steps()
  assert values['best/step'] in kept


def test_it_stops_early_where_no_evaluation_is_better(job: dict, tmp_path, capsys) -> None:
  """Nothing moves: every evaluation gives equal values."""
  job = merge(
    job, train={**job['train'], 'patience': 1, 'epochs': 5}, optim={'lr': 1e-30}, model=job['model'] | {'bn': 'frozen'}
  )
  values = loop.train_and_evaluate(job, tmp_path / 'run')
  assert sum('val/rmse' in row for row in rows(tmp_path / 'run')) == 2
  assert values['best/val/rmse'] == values['val/rmse']
  printed = capsys.readouterr().out
  assert 'stopped early: validation rmse is no better since 1 evaluations' in printed
  assert 'top1' not in printed


def test_less_is_better_and_what_is_no_number_is_worst() -> None:
  progress, task = Progress({}, {}, 0), brightness()
  for step, value in enumerate([float('nan'), 0.5, 0.2, float('nan'), 0.3], 1):
    progress = progress.advance(step, {'val/rmse': value, 'test/rmse': 0.0}, task.score)
  assert (progress.best['step'], progress.best['val/rmse'], progress.stale) == (3, 0.2, 2)


def reference_loss(setup: Setup, state: Any, batch: dict, step: int) -> float:
  """Return the mean loss of a step from its definition, view by view, with host arithmetic behind the network."""
  keys = [jax.random.fold_in(step_key(setup.key, step), augment.VIEW_KEYS + view) for view in range(2)]
  plain = augment.make(**setup.config['augment'])
  images = jnp.concatenate([plain(key, jnp.asarray(batch['image'])) for key in keys])
  seen = normalize(images, setup.dataset.info.mean, setup.dataset.info.std)
  outputs, _ = setup.model.apply(state.variables, seen, train=True, mutable=['batch_stats'])
  one, other = np.split(np.asarray(outputs, np.float64)[:, 0], 2)
  label = np.asarray(batch['label'], np.float64)
  weight = np.linspace(1.0, 2.0, BINS)[(label * BINS).astype(int)]
  errors, agreement = ((one - label) ** 2 + (other - label) ** 2) / 2, (one - other) ** 2
  return float((weight * errors + min(1.0, step / FULL_AGREEMENT) * agreement).mean())


def test_the_loss_has_the_step_the_extras_and_two_views(job: dict) -> None:
  setup = make_setup(config_lib.to_dict(config_lib.complete(job)))
  assert setup.extras['weights'].sharding.is_equivalent_to(sharding.replicated_sharding(setup.mesh), 1)
  assert len(setup.extras['weights'].addressable_shards) == len(jax.devices())
  setup.dataset.place(setup.mesh)
  state, lr = setup.create(setup.key), Hyperparameters()
  images, labels = (np.asarray(setup.dataset.train.device_data[name]) for name in ('image', 'label'))
  assert labels.dtype == np.float32
  for step, feed in enumerate(setup.feeds(0, 4)):
    batch = {'image': images[feed['index']], 'label': labels[feed['index']]}
    expected = reference_loss(setup, jax.device_get(state), batch, step)
    state, sums = setup.take_steps(state, jax.tree.map(lambda x: x[None], feed), lr)
    assert float(sums['loss'] / sums['count']) == pytest.approx(expected, rel=1e-4), step
    assert float(sums['count']) == 16


def test_an_import_path_names_it(job: dict, tmp_path) -> None:
  job = merge(job, train={**job['train'], 'epochs': 1})
  loop.train_and_evaluate(job, tmp_path / 'row')
  path = merge(job, train={**job['train'], 'task': 'tests.train.test_second_task:brightness'})
  loop.train_and_evaluate(path, tmp_path / 'path')
  assert digest_of(tmp_path / 'path') == digest_of(tmp_path / 'row')
  assert json.loads((tmp_path / 'path/config.json').read_text())['train']['task'] == path['train']['task']
  source = predict.load(str(tmp_path / 'path'), image_size=8)
  assert source.task.monitor == 'rmse'


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    (
      'brightnes',
      "train.task: unknown task 'brightnes', which is no package.module:name either; did you mean 'brightness'?",
    ),
    ('tests.train.nowhere:task', "train.task: tests.train.nowhere:task: No module named 'tests.train.nowhere'"),
    ('tests.train.test_second_task:BINS', "expected a function called 'BINS' in tests.train.test_second_task, found 4"),
    ('tests.train.test_second_task:no_task', 'expected a function that returns a jaxres.tasks.Task, found'),
    ('tests.train.test_second_task:write_data', 'it is called with loss, label_smoothing, target_threshold'),
  ],
)
def test_a_task_that_is_none_is_one_line(job: dict, tmp_path, name: str, message: str) -> None:
  with pytest.raises(InputError) as caught:
    loop.train_and_evaluate(merge(job, train={**job['train'], 'task': name}), tmp_path / 'run')
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run/checkpoints').exists()


def no_task(**_: Any) -> str:
  return 'no task'


@pytest.fixture
def trained(job: dict, tmp_path: pathlib.Path) -> pathlib.Path:
  loop.train_and_evaluate(job, tmp_path / 'run')
  return tmp_path / 'run'


def test_the_tools_say_what_the_task_says(trained: pathlib.Path, tmp_path, capsys) -> None:
  (run,) = runs.read_runs([str(trained)])
  best = min(row['val/rmse'] for row in rows(trained) if 'val/rmse' in row)
  assert f'the best on validation: root mean square error {best:.4g}' in run.origin
  compared, tests = compare.compare([run])
  error = tests['run'].logits[:, 0].astype(np.float64) - tests['run'].labels
  local = compared['runs']['run']
  assert local['rmse'] == pytest.approx(float(np.sqrt((error**2).mean())), rel=1e-5)
  assert local['mae'] == pytest.approx(float(np.abs(error).mean()), rel=1e-5)
  assert local['intervals']['rmse'][0] < local['rmse'] < local['intervals']['rmse'][1]
  assert cli.main(['evaluate', str(trained)]) is None
  printed = capsys.readouterr().out
  assert 'root mean square error' in printed
  assert 'top-1' not in printed
  page = run_report.make_report([run])
  assert 'Largest losses' in page
  assert 'Root mean square error' in page
  assert 'Confusion' not in page
  for tool, more in {'errors': [], 'explain': [__file__]}.items():
    with pytest.raises(SystemExit):
      cli.main([tool, str(trained), *more])
    assert f'jaxres {tool}: the task of the run learns numbers' in capsys.readouterr().err


def test_predictions_are_the_tasks_answers(trained: pathlib.Path, tmp_path, capsys) -> None:
  pixels = np.full((8, 8, 3), 120, np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'grey.png')
  assert cli.main(['predict', str(trained), str(tmp_path / 'grey.png'), '--json']) == 0
  answer = json.loads(capsys.readouterr().out)
  (run,) = runs.read_runs([str(trained)])
  seen = normalize(jnp.asarray(pixels[None]), run.dataset.info.mean, run.dataset.info.std)
  expected = run.model.apply(run.variables, seen, train=False)
  assert answer == {'image': str(tmp_path / 'grey.png'), 'brightness': pytest.approx(float(expected[0, 0]), rel=1e-4)}
  assert cli.main(['predict', str(trained), str(tmp_path / 'grey.png')]) == 0
  assert f'  brightness {expected[0, 0]:.3f}' in capsys.readouterr().out


def main(path: pathlib.Path) -> None:
  """Train what the file says, on the devices that there are: once without a stop, once with one and again."""
  from jaxres.models import blocks, resnet

  work = json.loads(path.read_text())
  resnet.MODELS['tiny'] = functools.partial(resnet.ResNet, (1,), (8,), blocks.BasicBlock, stem_type='cifar')
  tasks.TASKS['brightness'] = brightness
  actual: dict[str, Any] = {'devices': len(jax.devices())}
  for mode, config in work['configs'].items():
    complete_value, parts = (pathlib.Path(work['workdir']) / f'{mode}-{part}' for part in ('whole', 'parts'))
    loop.train_and_evaluate(config, complete_value)
    with pytest.MonkeyPatch.context() as patch:
      stop(config, parts, patch, 4, evaluating=False)
    loop.train_and_evaluate(config, parts)
    actual[mode] = [digest_of(complete_value), digest_of(parts), rows(complete_value)[-1]['test/rmse']]
  path.with_name('found.json').write_text(json.dumps(actual))


def test_one_device_and_two(job: dict, tmp_path) -> None:
  """Each resumes to the bit; the two agree as far as sums in another order do."""
  configs = {
    mode: merge(job, **{section: job[section] | fields for section, fields in MODES[mode].items()})
    for mode in ('resident', 'streamed, scanned, mixed')
  }
  results = []
  for devices in (1, 2):
    place = tmp_path / f'{devices}'
    place.mkdir()
    (place / 'work.json').write_text(json.dumps({'configs': configs, 'workdir': str(place)}))
    command = [sys.executable, __file__, str(place / 'work.json')]
    flags = f'--xla_force_host_platform_device_count={devices}'
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results.append(json.loads((place / 'found.json').read_text()))
  assert [actual.pop('devices') for actual in results] == [1, 2]
  for mode in configs:
    for complete_value, parts, _ in (actual[mode] for actual in results):
      assert complete_value == parts
    assert results[0][mode][2] == pytest.approx(results[1][mode][2], rel=0.02)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
