import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxres import data, losses, metrics, models, optim, sharding, state
from jaxres import step as step_lib
from jaxres.data import augment

KEY = jax.random.key(0)


def stacked(*feeds: dict) -> dict:
  """The feeds of so many steps."""
  return jax.tree.map(lambda *arrays: np.stack(arrays), *feeds)


def make_parts(config: dict, devices: int, transform: augment.Augment | None = None):
  mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
  dataset = data.load(**config['data'])
  dataset.place(sharding.replicated(mesh))
  model = models.create(**config['model'], num_classes=4)
  variables = jax.jit(lambda: state.init_variables(model, dataset.info.image_shape, jax.random.key(0)))()
  tx, _ = optim.make(variables['params'], 100, 6.0, lr=0.1)
  transform = transform or augment.make(crop_pad=1, flip=True)
  loss_fn = step_lib.make_loss(model, losses.get('softmax_xent'), transform, dataset.info)
  step = step_lib.make_train_steps(loss_fn, tx, dataset.train.fetch, mesh)
  begin = jax.device_put(state.create(variables, tx), sharding.replicated(mesh))
  return dataset, model, tx, transform, step, begin


def test_a_step_is_the_obvious_flax_and_optax_step(config: dict) -> None:
  dataset, model, tx, transform, step, begin = make_parts(config, 1)
  params, stats, opt_state = jax.tree.map(jnp.copy, (begin.params, begin.batch_stats, begin.opt_state))
  for number, feed in enumerate(dataset.train.train_feeds(0, 5)):
    begin, sums = step(begin, KEY, dataset.train.constants, stacked(feed))
    images = np.asarray(dataset.train.constants['image'])[feed['index']]
    labels = np.asarray(dataset.train.constants['label'])[feed['index']]
    x = transform(jax.random.fold_in(jax.random.key(0), number), jnp.asarray(images)) / 255
    x = (x - jnp.array(dataset.info.mean)) / jnp.array(dataset.info.std)

    def loss_of(p, stats=stats, x=x, labels=labels):
      logits, new = model.apply({'params': p, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])
      return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 4)).mean(), new['batch_stats']

    (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    assert float(sums['loss'] / sums['count']) == pytest.approx(float(loss), rel=1e-4)
  for ours, plain in ((begin.params, params), (begin.batch_stats, stats)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), ours, plain)
  assert int(begin.step) == 5


def test_the_loss_of_a_mixed_batch_is_that_of_its_parts(config: dict) -> None:
  dataset, model, *_, begin = make_parts(config, 1)
  mixing = augment.make(mixup=1.0, cutmix=1.0)
  loss_fn = step_lib.make_loss(model, losses.get('softmax_xent'), mixing, dataset.info)
  batch = {name: jnp.asarray(array[:16]) for name, array in dataset.train.constants.items()}
  rng = jax.random.key(5)
  loss, (_, sums) = loss_fn(begin.params, begin.batch_stats, batch, rng)
  images, label = mixing.mix(rng, batch['image'], jax.nn.one_hot(batch['label'], 4))
  x = (images / 255 - np.array(dataset.info.mean)) / np.array(dataset.info.std)
  logits, _ = model.apply(begin.variables, x, train=True, mutable=['batch_stats'])
  assert float(loss) == pytest.approx(float(-(label * jax.nn.log_softmax(logits)).sum(-1).mean()), rel=1e-4)
  assert (label > 0).sum(-1).max() == 2
  assert float(sums['top1']) == (logits.argmax(-1) == label.argmax(-1)).sum()


def test_steps_at_a_time_are_single_steps(config: dict) -> None:
  config['model'] |= {'dropout': 0.3}
  found = []
  for size in (1, 3):
    dataset, *_, step, current = make_parts(config, 8)
    feeds, total = list(dataset.train.train_feeds(0, 6)), []
    for at in range(0, 6, size):
      current, sums = step(current, KEY, dataset.train.constants, stacked(*feeds[at : at + size]))
      total.append(sums)
    assert step._cache_size() == 1
    found.append((current, jax.tree.map(lambda *parts: sum(map(float, parts)), *total)))
  assert found[1][1]['count'] == 96
  assert int(found[1][0].step) == 6
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


@pytest.mark.parametrize(
  ('drop', 'fields'),
  [
    ({}, {'crop_pad': 1, 'flip': True}),
    ({'dropout': 0.3, 'stochastic_depth': 0.5}, {}),
    ({}, {'policy': 'trivialaugment', 'resized_crop': (0.5, 1.0), 'mixup': 0.2, 'cutmix': 1.0}),
  ],
  ids=['crop-flip', 'dropping', 'mixing'],
)
def test_eight_devices_train_as_one_does(config: dict, drop: dict, fields: dict) -> None:
  config['model'] |= drop
  found = {}
  for devices in (1, 8):
    dataset, *_, step, current = make_parts(config, devices, augment.make(**fields))
    for feed in dataset.train.train_feeds(0, 6):
      current, sums = step(current, KEY, dataset.train.constants, stacked(feed))
    found[devices] = (current.params, current.batch_stats, sums)
    assert step._cache_size() == 1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found.values())


def test_what_is_dropped_is_a_function_of_the_steps_key(tiny: str) -> None:
  model = models.create(tiny, num_classes=4, dropout=0.5, stochastic_depth=0.5)
  info = data.Info(('a', 'b', 'c', 'd'), (8, 8, 3), (0.5,) * 3, (0.25,) * 3)
  images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
  batch = {'image': jnp.asarray(images), 'label': jnp.arange(8) % 4}
  variables = jax.jit(lambda: state.init_variables(model, info.image_shape, jax.random.key(0)))()
  loss_fn = jax.jit(step_lib.make_loss(model, losses.get('softmax_xent'), augment.make(), info))
  first, again, other = (
    float(loss_fn(variables['params'], variables['batch_stats'], batch, jax.random.key(seed))[0]) for seed in (0, 0, 1)
  )
  assert first == again
  assert abs(first - other) > 1e-3


def frozen_loss(model, dataset) -> step_lib.LossFn:
  """The loss with the running statistics: of it a batch is the mean of its parts."""

  def loss_fn(params, batch_stats, batch, rng):
    images = augment.normalize(batch['image'], dataset.info.mean, dataset.info.std)
    logits = model.apply({'params': params, 'batch_stats': batch_stats}, images, train=False)
    each = losses.softmax_xent(logits, batch['label'])
    return each.mean(), (batch_stats, metrics.sums(each, logits, batch['label']))

  return loss_fn


@pytest.mark.parametrize(('devices', 'parts'), [(1, 4), (8, 2)])
def test_accumulated_parts_are_the_large_batch_where_batch_norm_is_frozen(
  config: dict, devices: int, parts: int
) -> None:
  found = []
  for accumulate in (1, parts):
    dataset, model, tx, _, _, current = make_parts(config, devices)
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
    loss_fn = frozen_loss(model, dataset)
    step = step_lib.make_train_steps(loss_fn, tx, dataset.train.fetch, mesh, accumulate=accumulate)
    for feed in dataset.train.train_feeds(0, 5):
      current, sums = step(current, KEY, dataset.train.constants, stacked(feed))
    found.append((current, sums))
    assert step._cache_size() == 1
  assert float(sums['count']) == 16
  assert int(current.step) == 5
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_accumulated_parts_are_a_loop_over_them(config: dict) -> None:
  dataset, model, tx, transform, _, begin = make_parts(config, 8)
  loss_fn = step_lib.make_loss(model, losses.get('softmax_xent'), transform, dataset.info)
  step = step_lib.make_train_steps(loss_fn, tx, dataset.train.fetch, sharding.make_mesh(), accumulate=2)
  params, stats, opt_state = jax.tree.map(jnp.copy, (begin.params, begin.batch_stats, begin.opt_state))
  arrays = jax.device_get(dataset.train.constants)
  for number, feed in enumerate(dataset.train.train_feeds(0, 3)):
    begin, sums = step(begin, KEY, dataset.train.constants, stacked(feed))
    rng, grads, total = jax.random.fold_in(jax.random.key(0), number), [], 0.0
    for part in range(2):
      batch = {name: jnp.asarray(array[feed['index'][part::2]]) for name, array in arrays.items()}
      assert batch['label'].shape == (8,)
      grad, (stats, own) = jax.grad(loss_fn, has_aux=True)(params, stats, batch, jax.random.fold_in(rng, part))
      grads.append(grad)
      total += float(own['loss'])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    updates, opt_state = tx.update(mean, opt_state, params)
    params = optax.apply_updates(params, updates)
    assert float(sums['loss']) == pytest.approx(total, rel=1e-4)
  for ours, plain in ((begin.params, params), (begin.batch_stats, stats)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), ours, plain)


def test_a_step_keeps_the_moving_average_of_what_it_returns(config: dict) -> None:
  dataset, model, tx, transform, _, begin = make_parts(config, 8)
  loss_fn = step_lib.make_loss(model, losses.get('softmax_xent'), transform, dataset.info)
  step = step_lib.make_train_steps(loss_fn, tx, dataset.train.fetch, sharding.make_mesh(), ema=0.3)
  current = begin.replace(ema=jax.tree.map(jnp.copy, begin.variables))
  expected = jax.device_get(current.variables)
  for t, feed in enumerate(dataset.train.train_feeds(0, 6), 1):
    current, _ = step(current, KEY, dataset.train.constants, stacked(feed))
    d = min(0.3, (1 + t) / (10 + t))
    expected = jax.tree.map(lambda a, b, d=d: d * a + (1 - d) * np.asarray(b), expected, current.variables)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), current.ema, expected)
  kernel = lambda tree: np.asarray(tree['params']['head']['fc']['kernel'])
  assert not np.allclose(kernel(current.ema), kernel(current.variables), rtol=1e-3)
