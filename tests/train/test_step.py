import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import scaling
from jaxres import data, losses, metrics, models, optim, state
from jaxres.data import augment
from jaxres.models import layers
from jaxres.runtime import sharding
from jaxres.state import init_variables
from jaxres.train.gradients import Context, LossFn, accumulate_gradients, make_loss, per_device_gradients
from jaxres.train.step import Hyperparameters, make_train_steps
from tests.helpers import classification
from tests.train.runs import KEY, stack

pytestmark = pytest.mark.eight_devices


def make_parts(config: dict, devices: int, transform: augment.Augment | None = None):
  mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
  dataset = data.load(**config['data'])
  dataset.place(mesh)
  model = models.create(**config['model'], num_classes=4)
  variables = jax.jit(lambda: init_variables(model, dataset.info.image_shape, jax.random.key(0)))()
  tx, _ = optim.make(variables['params'], 100, 6.0, lr=0.1)
  transform = transform or augment.make(crop_pad=1, flip=True)
  loss_fn = make_loss(model, classification(), transform, dataset.info)
  step = make_train_steps(loss_fn, lambda _, tx=tx: tx, dataset.train.get_batch, mesh)
  start = jax.device_put(state.create(variables, tx), sharding.replicated_sharding(mesh))
  return dataset, model, tx, transform, step, start


def test_a_step_is_the_obvious_flax_and_optax_step(config: dict) -> None:
  dataset, model, tx, transform, step, start = make_parts(config, 1)
  params, stats, opt_state = jax.tree.map(jnp.copy, (start.params, start.batch_stats, start.opt_state))
  for number, feed in enumerate(dataset.train.step_inputs(0, 5)):
    start, sums = step(start, KEY, dataset.train.device_data, stack(feed), Hyperparameters(), None)
    images = np.asarray(dataset.train.device_data['image'])[feed['index']]
    labels = np.asarray(dataset.train.device_data['label'])[feed['index']]
    x = transform(jax.random.fold_in(jax.random.key(0), number), jnp.asarray(images)) / 255
    x = (x - jnp.array(dataset.info.mean)) / jnp.array(dataset.info.std)

    def loss_of(p, stats=stats, x=x, labels=labels):
      logits, new = model.apply({'params': p, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])
      return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 4)).mean(), new['batch_stats']

    (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    assert float(sums['loss'] / sums['count']) == pytest.approx(float(loss), rel=1e-4)
  for ours, plain in ((start.params, params), (start.batch_stats, stats)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), ours, plain)
  assert int(start.step) == 5


def test_the_loss_of_a_mixed_batch_is_that_of_its_parts(config: dict) -> None:
  dataset, model, *_, start = make_parts(config, 1)
  mixing = augment.make(mixup=1.0, cutmix=1.0)
  loss_fn = make_loss(model, classification(), mixing, dataset.info)
  batch = {name: jnp.asarray(array[:16]) for name, array in dataset.train.device_data.items()}
  rng = jax.random.key(5)
  loss, (_, sums) = loss_fn(start.params, start.batch_stats, batch, Context(rng, jnp.int32(0)))
  images, label = mixing.mix(rng, batch['image'], jax.nn.one_hot(batch['label'], 4))
  x = (images / 255 - np.array(dataset.info.mean)) / np.array(dataset.info.std)
  logits, _ = model.apply(start.variables, x, train=True, mutable=['batch_stats'])
  assert float(loss) == pytest.approx(float(-(label * jax.nn.log_softmax(logits)).sum(-1).mean()), rel=1e-4)
  assert (label > 0).sum(-1).max() == 2
  assert float(sums['top1']) == (logits.argmax(-1) == label.argmax(-1)).sum()


def test_steps_at_a_time_are_single_steps(config: dict) -> None:
  config['model'] |= {'dropout': 0.3}
  actual = []
  for size in (1, 3):
    dataset, *_, step, current = make_parts(config, 8)
    feeds, total = list(dataset.train.step_inputs(0, 6)), []
    for at in range(0, 6, size):
      current, sums = step(
        current, KEY, dataset.train.device_data, stack(*feeds[at : at + size]), Hyperparameters(), None
      )
      total.append(sums)
    assert step._cache_size() == 1
    actual.append((current, jax.tree.map(lambda *parts: sum(map(float, parts)), *total)))
  assert actual[1][1]['count'] == 96
  assert int(actual[1][0].step) == 6
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *actual)


@pytest.mark.parametrize(
  ('drop', 'fields', 'steps'),
  [
    ({}, {'crop_pad': 1, 'flip': True}, 20),
    ({'dropout': 0.3, 'stochastic_depth': 0.5}, {}, 6),
    ({}, {'policy': 'trivialaugment', 'resized_crop': (0.5, 1.0), 'mixup': 0.2, 'cutmix': 1.0}, 6),
  ],
  ids=['crop-flip', 'dropping', 'mixing'],
)
def test_eight_devices_train_as_one_does(config: dict, drop: dict, fields: dict, steps: int) -> None:
  """The same examples at each step, the same losses, and in the end the same leaves of the state."""
  config['model'] |= drop
  read, actual = [], []
  for devices in (1, 8):
    dataset, *_, step, current = make_parts(config, devices, augment.make(**fields))
    feeds, sums = [*dataset.train.step_inputs(0, steps)], []
    for feed in feeds:
      current, of_step = step(current, KEY, dataset.train.device_data, stack(feed), Hyperparameters(), None)
      sums.append(jax.device_get(of_step))
    assert step._cache_size() == 1
    assert len(current.step.sharding.device_set) == devices
    read.append([feed['index'].tolist() for feed in feeds])
    actual.append((jax.device_get(current), sums))
  assert read[0] == read[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *actual)


def test_what_is_dropped_is_a_function_of_the_steps_key(tiny: str) -> None:
  model = models.create(tiny, num_classes=4, dropout=0.5, stochastic_depth=0.5)
  info = data.Info(('a', 'b', 'c', 'd'), (8, 8, 3), (0.5,) * 3, (0.25,) * 3)
  images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
  batch = {'image': jnp.asarray(images), 'label': jnp.arange(8) % 4}
  variables = jax.jit(lambda: init_variables(model, info.image_shape, jax.random.key(0)))()
  loss_fn = jax.jit(make_loss(model, classification(), augment.make(), info))
  first, again, other = (
    float(loss_fn(variables['params'], variables['batch_stats'], batch, Context(jax.random.key(seed), jnp.int32(0)))[0])
    for seed in (0, 0, 1)
  )
  assert first == again
  assert abs(first - other) > 1e-3


def frozen_loss(model, dataset) -> LossFn:
  """The loss with the running statistics: of it a batch is the mean of its parts."""

  def loss_fn(params, batch_stats, batch, context):
    images = augment.normalize(batch['image'], dataset.info.mean, dataset.info.std)
    logits = model.apply({'params': params, 'batch_stats': batch_stats}, images, train=False)
    each = losses.softmax_xent(logits, batch['label'])
    return each.mean(), (batch_stats, metrics.sums(each, logits, batch['label']))

  return loss_fn


@pytest.mark.parametrize(('devices', 'parts'), [(1, 4), (8, 2)])
def test_accumulated_parts_are_the_large_batch_where_batch_norm_is_frozen(
  config: dict, devices: int, parts: int
) -> None:
  actual = []
  for accumulate in (1, parts):
    dataset, model, tx, _, _, current = make_parts(config, devices)
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
    loss_fn = frozen_loss(model, dataset)
    step = make_train_steps(loss_fn, lambda _, tx=tx: tx, dataset.train.get_batch, mesh, accumulate=accumulate)
    for feed in dataset.train.step_inputs(0, 5):
      current, sums = step(current, KEY, dataset.train.device_data, stack(feed), Hyperparameters(), None)
    actual.append((current, sums))
    assert step._cache_size() == 1
  assert float(sums['count']) == 16
  assert int(current.step) == 5
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *actual)


def test_accumulated_parts_are_a_loop_over_them(config: dict) -> None:
  dataset, model, tx, transform, _, start = make_parts(config, 8)
  loss_fn = make_loss(model, classification(), transform, dataset.info)
  step = make_train_steps(loss_fn, lambda _, tx=tx: tx, dataset.train.get_batch, sharding.make_mesh(), accumulate=2)
  params, stats, opt_state = jax.tree.map(jnp.copy, (start.params, start.batch_stats, start.opt_state))
  arrays = jax.device_get(dataset.train.device_data)
  for number, feed in enumerate(dataset.train.step_inputs(0, 3)):
    start, sums = step(start, KEY, dataset.train.device_data, stack(feed), Hyperparameters(), None)
    rng, grads, total = jax.random.fold_in(jax.random.key(0), number), [], 0.0
    for part in range(2):
      batch = {name: jnp.asarray(array[feed['index'][part::2]]) for name, array in arrays.items()}
      assert batch['label'].shape == (8,)
      grad, (stats, local) = jax.grad(loss_fn, has_aux=True)(
        params, stats, batch, Context(jax.random.fold_in(rng, part), jnp.int32(0))
      )
      grads.append(grad)
      total += float(local['loss'])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    updates, opt_state = tx.update(mean, opt_state, params)
    params = optax.apply_updates(params, updates)
    assert float(sums['loss']) == pytest.approx(total, rel=1e-4)
  for ours, plain in ((start.params, params), (start.batch_stats, stats)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), ours, plain)


def test_a_step_keeps_the_moving_average_of_what_it_returns(config: dict) -> None:
  dataset, model, tx, transform, _, start = make_parts(config, 8)
  loss_fn = make_loss(model, classification(), transform, dataset.info)
  step = make_train_steps(loss_fn, lambda _, tx=tx: tx, dataset.train.get_batch, sharding.make_mesh(), ema=0.3)
  current = start.replace(ema=jax.tree.map(jnp.copy, start.variables))
  expected = jax.device_get(current.variables)
  for t, feed in enumerate(dataset.train.step_inputs(0, 6), 1):
    current, _ = step(current, KEY, dataset.train.device_data, stack(feed), Hyperparameters(), None)
    d = min(0.3, (1 + t) / (10 + t))
    expected = jax.tree.map(lambda a, b, d=d: d * a + (1 - d) * np.asarray(b), expected, current.variables)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), current.ema, expected)
  kernel = lambda tree: np.asarray(tree['params']['head']['fc']['kernel'])
  assert not np.allclose(kernel(current.ema), kernel(current.variables), rtol=1e-3)


def test_a_batch_for_eight_devices_runs_on_one_in_eight_parts(config: dict) -> None:
  """The part of a device is a part of ``accumulate`` then: as much memory, and the same update."""
  actual, memory = {}, {}
  config['data']['batch_size'] = 64
  for devices, accumulate in ((8, 1), (1, 8), (1, 1)):
    dataset, model, tx, _, _, current = make_parts(config, devices)
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
    step = make_train_steps(
      frozen_loss(model, dataset), lambda _, tx=tx: tx, dataset.train.get_batch, mesh, accumulate=accumulate
    )
    feeds = [stack(feed) for feed in dataset.train.step_inputs(0, 3)]
    compiled = step.lower(current, KEY, dataset.train.device_data, feeds[0], Hyperparameters(), None).compile()
    memory[devices, accumulate] = compiled.memory_analysis().temp_size_in_bytes
    for feed in feeds:
      current, sums = step(current, KEY, dataset.train.device_data, feed, Hyperparameters(), None)
    actual[devices, accumulate] = (current, sums)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual[8, 1], actual[1, 8])
  assert memory[1, 8] < memory[1, 1] / 2


class Little(nn.Module):
  """A matrix product and a BatchNorm."""

  frozen: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', nn.initializers.normal(1.0), (3, 5))
    return layers.BatchNorm(train=not self.frozen, name='bn')(x @ kernel)


def little_loss(frozen: bool) -> LossFn:
  def loss_fn(params, batch_stats, batch, context):
    variables = {'params': params, 'batch_stats': batch_stats}
    y, updates = Little(frozen).apply(variables, batch['image'], mutable=['batch_stats'])
    each = (y * batch['weight']).sum((1, 2, 3))
    return each.mean(), (updates['batch_stats'], {'loss': each.sum()})

  return loss_fn


def numpys(params: dict, stats: dict, x: np.ndarray, weight: np.ndarray, groups: int, frozen: bool) -> tuple:
  """The gradients, the running statistics and the loss of ``little_loss``, over ``groups`` parts of the batch, float64.

  Ioffe and Szegedy 2015, section 3.
  """
  kernel, scale, bias = params['kernel'], params['bn']['scale'], params['bn']['bias']
  grads, means, variances, loss = [], [], [], 0.0
  for local, w in zip(np.split(x, groups), np.split(weight, groups), strict=True):
    rows, g = local.reshape(-1, 3), w.reshape(-1, 5) / len(local)
    z = rows @ kernel
    mean, var = (stats['bn']['mean'], stats['bn']['var']) if frozen else (z.mean(0), z.var(0))
    normal = (z - mean) / np.sqrt(var + 1e-5)
    loss += ((normal * scale + bias) * w.reshape(-1, 5)).sum()
    through = 0.0 if frozen else g.mean(0) + normal * (g * normal).mean(0)
    dz = scale / np.sqrt(var + 1e-5) * (g - through)
    grads.append({'kernel': rows.T @ dz, 'bn': {'scale': (g * normal).sum(0), 'bias': g.sum(0)}})
    means.append(mean)
    variances.append(var)
  moved = lambda old, new: old if frozen else 0.9 * old + 0.1 * np.mean(new, axis=0)
  after = {'bn': {'mean': moved(stats['bn']['mean'], means), 'var': moved(stats['bn']['var'], variances)}}
  return jax.tree.map(lambda *parts: np.mean(parts, axis=0), *grads), after, loss


@pytest.mark.parametrize('bn', ['global', 'per_device', 'frozen'])
def test_batch_norm_over_devices_is_numpys(bn: str) -> None:
  rng = np.random.default_rng(0)
  scales = np.linspace(0.5, 3, 32)[:, None, None, None]  # so that the parts of the devices differ
  batch = {'image': rng.normal(0.5, scales, (32, 4, 4, 3)), 'weight': rng.normal(size=(32, 4, 4, 5))}
  params = {'kernel': rng.normal(size=(3, 5)), 'bn': {'scale': rng.normal(size=5), 'bias': rng.normal(size=5)}}
  stats = {'bn': {'mean': rng.normal(size=5), 'var': rng.uniform(1, 2, 5)}}
  mesh = sharding.make_mesh()
  make = per_device_gradients if bn == 'per_device' else accumulate_gradients
  gradient = make(little_loss(bn == 'frozen'), lambda device_data, feed: feed, 1, mesh)
  complete, split = sharding.replicated_sharding(mesh), sharding.batch_sharding(mesh)
  run = jax.jit(gradient, in_shardings=(complete, complete, complete, split, complete), out_shardings=complete)
  single = lambda tree: jax.tree.map(np.float32, tree)
  grads, (after, sums) = run(single(params), single(stats), {}, single(batch), Context(KEY, jnp.int32(0)))
  expected = numpys(
    params, stats, batch['image'], batch['weight'], 8 if bn == 'per_device' else 1, frozen=bn == 'frozen'
  )
  actual = (grads, after, float(sums['loss']))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, expected)


def collectives_of(config: dict, **fields) -> dict[str, int]:
  """The collectives in the compiled step of 8 devices."""
  dataset, model, tx, transform, _, start = make_parts(config, 8)
  loss_fn = make_loss(model, classification(), transform, dataset.info)
  step = make_train_steps(loss_fn, lambda _, tx=tx: tx, dataset.train.get_batch, sharding.make_mesh(), **fields)
  feed = stack(next(dataset.train.step_inputs(0, 1)))
  return scaling.collectives(
    step.lower(start, KEY, dataset.train.device_data, feed, Hyperparameters(), None).compile().as_text()
  )


def test_per_device_batch_norm_needs_one_all_reduce(config: dict, stages: str) -> None:
  config['model']['name'] = stages
  config['data']['batch_size'] = 32
  assert collectives_of(config, per_device_bn=True) == {'all-reduce': 1}
  assert collectives_of(config, per_device_bn=True, accumulate=2) == {'all-reduce': 1}
  norms = 1 + 3 * 2 + 2  # of the stem, the blocks, the shortcuts
  assert collectives_of(config)['all-reduce'] > norms
  config['model']['bn'] = 'frozen'
  assert collectives_of(config)['all-reduce'] < norms / 2


def test_frozen_batch_norm_trains_as_it_evaluates(tiny: str) -> None:
  model = models.create(tiny, num_classes=4, bn='frozen')
  variables = jax.jit(lambda: init_variables(model, (8, 8, 3), KEY))()
  variables['batch_stats'] = jax.tree.map(lambda x: x + 0.5, variables['batch_stats'])
  images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
  logits, updates = model.apply(variables, images, train=True, mutable=['batch_stats'])
  np.testing.assert_allclose(logits, model.apply(variables, images, train=False), rtol=1e-5, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], variables['batch_stats'])


def test_each_device_augments_its_part_with_a_separate_key(config: dict) -> None:
  seen = []
  mesh = sharding.make_mesh()

  def loss_fn(params, batch_stats, batch, context):
    return params.sum(), (batch_stats, {'drawn': jax.random.uniform(context.rng, (8,))[jax.lax.axis_index('data')]})

  gradient = per_device_gradients(loss_fn, lambda device_data, feed: feed, 1, mesh)
  for key in (KEY, jax.random.key(1)):
    _, (_, sums) = jax.jit(gradient)(jnp.ones(3), {}, {}, {'index': jnp.arange(8)}, Context(key, jnp.int32(0)))
    seen.append(float(sums['drawn']))
  expected = [
    sum(jax.random.uniform(jax.random.fold_in(k, d), (8,))[d] for d in range(8)) for k in (KEY, jax.random.key(1))
  ]
  np.testing.assert_allclose(seen, expected, rtol=1e-5)


@pytest.mark.parametrize('name', ['nesterov', 'adamw', 'lamb'])
def test_a_sharded_optimizer_takes_the_same_steps(config: dict, name: str) -> None:
  mesh, actual = sharding.make_mesh(), []
  for shard in (False, True):
    dataset, model, _, transform, _, start = make_parts(config, 8)
    tx, _ = optim.make(start.params, 100, 6.0, name, lr=0.01, clip_norm=1.0)
    variables = jax.tree.map(jnp.copy, start.variables)
    create = functools.partial(state.create, variables, tx, ema=True)
    shardings = state.shardings(jax.eval_shape(create), mesh, shard_optimizer=shard)
    current = jax.jit(create, out_shardings=shardings)()
    loss_fn = make_loss(model, classification(), transform, dataset.info)
    step = make_train_steps(loss_fn, lambda _, tx=tx: tx, dataset.train.get_batch, mesh, ema=0.5, shardings=shardings)
    for feed in dataset.train.step_inputs(0, 5):
      current, sums = step(current, KEY, dataset.train.device_data, stack(feed), Hyperparameters(), None)
    assert step._cache_size() == 1
    actual.append((current, sums))
    for part in ('params', 'batch_stats', 'opt_state', 'ema'):
      leaves = [x for x in jax.tree.leaves(getattr(current, part)) if x.ndim]
      complete = part in ('params', 'batch_stats') or not shard
      assert all(
        x.sharding.is_fully_replicated == complete for x in leaves if x.size % 8 == 0 and max(x.shape) % 8 == 0
      )
      assert any(x.addressable_shards[0].data.size * 8 == x.size for x in leaves) != complete
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *actual)
