import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxres import data, models, state
from jaxres.data import augment
from jaxres.runtime import sharding
from jaxres.state import init_variables
from jaxres.train import loop, recalibrate
from tests.helpers import merge
from tests.train.runs import final_state


def make_parts(config, model):
  dataset = data.load(**config['data'])
  mesh = sharding.make_mesh()
  dataset.place(mesh)
  variables = jax.jit(lambda: init_variables(model, dataset.info.image_shape, jax.random.key(0)))()
  run = recalibrate.make_recalibrate(model, dataset.info, dataset.train.get_batch, mesh)
  return (
    dataset,
    variables,
    lambda batches: run(variables, dataset.train.device_data, dataset.train.step_inputs(0, batches)),
  )


def test_the_statistics_are_the_means_over_batches_of_theirs(config, tiny) -> None:
  model = models.create(tiny, num_classes=4, dropout=0.5, stochastic_depth=0.5)
  dataset, variables, run = make_parts(config, model)
  variables['batch_stats'] = jax.tree.map(lambda leaf: leaf + jnp.nan, variables['batch_stats'])  # are not looked at
  actual = run(3)
  means, variances = [], []
  for feed in dataset.train.step_inputs(0, 3):
    images = jnp.asarray(np.asarray(dataset.train.device_data['image'])[np.asarray(feed['index'])])
    x = augment.normalize(images, dataset.info.mean, dataset.info.std)
    kernel = variables['params']['stem']['conv']['kernel']
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    means.append(np.asarray(y, np.float64).mean((0, 1, 2)))
    variances.append(np.asarray(y, np.float64).var((0, 1, 2)))
  assert np.ptp(variances, axis=0).min() > 1e-3
  stats = actual['batch_stats']['stem']['bn']
  np.testing.assert_allclose(stats['mean'], np.mean(means, axis=0), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(stats['var'], np.mean(variances, axis=0), rtol=1e-4)
  assert actual['params'] is variables['params']
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(actual))


def test_frozen_norms_stay_as_they_are(config, tiny) -> None:
  model = models.create(tiny, num_classes=4).clone(frozen_norms=('stem/bn', 'stage1/block0/bn2'))
  _, variables, run = make_parts(config, model)
  before = jax.tree.map(lambda leaf: leaf * 1.1 + 0.1, variables['batch_stats'])
  variables['batch_stats'] = before
  after = run(5)['batch_stats']
  same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), jax.device_get(before), jax.device_get(after))
  assert same == {
    'stem': {'bn': {'mean': True, 'var': True}},
    'stage1': {'block0': {'bn1': {'mean': False, 'var': False}, 'bn2': {'mean': True, 'var': True}}},
  }


def test_a_run_evaluates_and_saves_them_and_trains_as_without(config, tmp_path) -> None:
  scores = {}
  for batches in (0, 4):
    options = merge(config, train={'epochs': 1, 'ema': 0.9, 'recalibrate_bn': batches})
    scores[batches] = loop.train_and_evaluate(options, tmp_path / str(batches))
  plain, other = (final_state(tmp_path / str(batches)) for batches in (0, 4))
  differs = {name for name in plain if plain[name].tobytes() != other[name].tobytes()}
  assert {name for name in plain if 'batch_stats' in name} == differs
  assert any('ema' in name for name in differs)
  assert scores[0]['test/loss'] != scores[4]['test/loss']
  assert scores[0]['ema/test/loss'] != scores[4]['ema/test/loss']
  assert scores[0]['train/loss'] == scores[4]['train/loss']


def test_it_stops_where_a_signal_came(config, tiny) -> None:
  model = models.create(tiny, num_classes=4)
  dataset, variables, _ = make_parts(config, model)
  run = recalibrate.make_recalibrate(model, dataset.info, dataset.train.get_batch, sharding.make_mesh())
  asked: list[int] = []

  def stop() -> bool:
    asked.append(len(asked))
    return len(asked) > 3

  train_state = state.create(variables, optax.sgd(0.1))
  recalibrate.recalibrate_state(train_state, run, dataset.train, 10**9, stop)
  assert asked == [0, 1, 2, 3]
