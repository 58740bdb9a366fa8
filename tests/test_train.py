import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxres import checkpoint, data, evaluate, losses, metrics, models, optim, sharding, state, train
from jaxres.data import augment
from jaxres.errors import InputError


@pytest.fixture
def config(npz, tiny: str) -> dict:
  return {
    'model': {'name': tiny},
    'data': {'name': 'arrays', 'path': npz(), 'batch_size': 16},
    'augment': {'crop_pad': 1, 'flip': True},
    'optim': {'lr': 0.1},
    'train': {'epochs': 4, 'eval_batch_size': 16, 'log_every_steps': 2},
  }


def merged(config: dict, **changes: dict) -> dict:
  return {section: config.get(section, {}) | changes.get(section, {}) for section in config | changes}


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  with checkpoint.open(workdir / 'checkpoints') as manager:
    import orbax.checkpoint as ocp

    items = ocp.args.Composite(state=ocp.args.StandardRestore())
    saved = manager.restore(manager.latest_step(), args=items)['state']
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(saved)}


def rows(workdir: pathlib.Path) -> list[dict]:
  found = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in row.items() if k != 'train/images_per_s'} for row in found]


def quiet(metrics: dict) -> dict:
  return {k: v for k, v in metrics.items() if not k.endswith('images_per_s')}


def test_a_run_learns_and_leaves_what_it_promises(config: dict, tmp_path) -> None:
  found = train.train_and_evaluate(merged(config, train={'epochs': 12}, augment={'crop_pad': 0}), tmp_path / 'run')
  assert found['test/top1'] > 0.9
  assert found['train/loss'] < 0.5
  names = {path.name.split('.out')[0] for path in (tmp_path / 'run').iterdir()}
  assert names == {'checkpoints', 'config.json', 'metrics.jsonl', 'events', 'curves.png', 'parameters.txt'}
  assert json.loads((tmp_path / 'run/config.json').read_text())['optim']['momentum'] == 0.9
  assert rows(tmp_path / 'run')[-1]['test/top1'] == pytest.approx(found['test/top1'], rel=1e-6)
  assert 'stage1/block0/conv1/kernel' in (tmp_path / 'run/parameters.txt').read_text()


def make_parts(config: dict, devices: int, transform: augment.Augment | None = None):
  mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
  dataset = data.load(**config['data'])
  dataset.place(sharding.replicated(mesh))
  model = models.create(**config['model'], num_classes=4)
  variables = jax.jit(lambda: state.init_variables(model, dataset.info.image_shape, 0))()
  tx, _ = optim.make(variables['params'], 100, 6.0, lr=0.1)
  transform = transform or augment.make(crop_pad=1, flip=True)
  loss_fn = train.make_loss(model, losses.get('softmax_xent'), transform, dataset.info)
  step = train.make_train_step(loss_fn, tx, dataset.train.fetch, 0, mesh)
  begin = jax.device_put(state.create(variables, tx), sharding.replicated(mesh))
  return dataset, model, tx, transform, step, begin


def test_a_step_is_the_obvious_flax_and_optax_step(config: dict) -> None:
  dataset, model, tx, transform, step, begin = make_parts(config, 1)
  params, stats, opt_state = jax.tree.map(jnp.copy, (begin.params, begin.batch_stats, begin.opt_state))
  for number, feed in enumerate(dataset.train.train_feeds(0, 5)):
    begin, sums = step(begin, dataset.train.constants, feed)
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
  loss_fn = train.make_loss(model, losses.get('softmax_xent'), mixing, dataset.info)
  batch = {name: jnp.asarray(array[:16]) for name, array in dataset.train.constants.items()}
  rng = jax.random.key(5)
  loss, (_, sums) = loss_fn(begin.params, begin.batch_stats, batch, rng)
  images, label = mixing.mix(rng, batch['image'], jax.nn.one_hot(batch['label'], 4))
  x = (images / 255 - np.array(dataset.info.mean)) / np.array(dataset.info.std)
  logits, _ = model.apply(begin.variables, x, train=True, mutable=['batch_stats'])
  assert float(loss) == pytest.approx(float(-(label * jax.nn.log_softmax(logits)).sum(-1).mean()), rel=1e-4)
  assert (label > 0).sum(-1).max() == 2
  assert float(sums['top1']) == (logits.argmax(-1) == label.argmax(-1)).sum()


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
  config, found = merged(config, model=drop), {}
  for devices in (1, 8):
    dataset, *_, step, current = make_parts(config, devices, augment.make(**fields))
    for feed in dataset.train.train_feeds(0, 6):
      current, sums = step(current, dataset.train.constants, feed)
    found[devices] = (current.params, current.batch_stats, sums)
    assert step._cache_size() == 1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found.values())


def test_what_is_dropped_is_a_function_of_the_steps_key(tiny: str) -> None:
  model = models.create(tiny, num_classes=4, dropout=0.5, stochastic_depth=0.5)
  info = data.Info((8, 8, 3), ('a', 'b', 'c', 'd'), (0.5,) * 3, (0.25,) * 3)
  images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
  batch = {'image': jnp.asarray(images), 'label': jnp.arange(8) % 4}
  variables = jax.jit(lambda: state.init_variables(model, info.image_shape, 0))()
  loss_fn = jax.jit(train.make_loss(model, losses.get('softmax_xent'), augment.make(), info))
  first, again, other = (
    float(loss_fn(variables['params'], variables['batch_stats'], batch, jax.random.key(seed))[0]) for seed in (0, 0, 1)
  )
  assert first == again
  assert abs(first - other) > 1e-3


def frozen_loss(model, dataset) -> train.LossFn:
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
    step = train.make_train_step(loss_fn, tx, dataset.train.fetch, 0, mesh, accumulate=accumulate)
    for feed in dataset.train.train_feeds(0, 5):
      current, sums = step(current, dataset.train.constants, feed)
    found.append((current, sums))
    assert step._cache_size() == 1
  assert float(sums['count']) == 16
  assert int(current.step) == 5
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_accumulated_parts_are_a_loop_over_them(config: dict) -> None:
  dataset, model, tx, transform, _, begin = make_parts(config, 8)
  loss_fn = train.make_loss(model, losses.get('softmax_xent'), transform, dataset.info)
  step = train.make_train_step(loss_fn, tx, dataset.train.fetch, 0, sharding.make_mesh(), accumulate=2)
  params, stats, opt_state = jax.tree.map(jnp.copy, (begin.params, begin.batch_stats, begin.opt_state))
  arrays = jax.device_get(dataset.train.constants)
  for number, feed in enumerate(dataset.train.train_feeds(0, 3)):
    begin, sums = step(begin, dataset.train.constants, feed)
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
  loss_fn = train.make_loss(model, losses.get('softmax_xent'), transform, dataset.info)
  step = train.make_train_step(loss_fn, tx, dataset.train.fetch, 0, sharding.make_mesh(), ema=0.3)
  current = begin.replace(ema=jax.tree.map(jnp.copy, begin.variables))
  expected = jax.device_get(current.variables)
  for t, feed in enumerate(dataset.train.train_feeds(0, 6), 1):
    current, _ = step(current, dataset.train.constants, feed)
    d = min(0.3, (1 + t) / (10 + t))
    expected = jax.tree.map(lambda a, b, d=d: d * a + (1 - d) * np.asarray(b), expected, current.variables)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), current.ema, expected)
  kernel = lambda tree: np.asarray(tree['params']['head']['fc']['kernel'])
  assert not np.allclose(kernel(current.ema), kernel(current.variables), rtol=1e-3)


@pytest.mark.parametrize('options', [{}, {'ema': 0.9, 'accumulate': 2}])
def test_an_interrupted_run_ends_bit_identical(config: dict, tmp_path, monkeypatch, options: dict) -> None:
  config = merged(config, data={'val': 0.25}, train=options)
  whole = train.train_and_evaluate(config, tmp_path / 'whole')
  evaluations, real = [], evaluate.evaluate_state

  def interrupt(*args):
    evaluations.append(1)
    if len(evaluations) == 3:
      raise KeyboardInterrupt
    return real(*args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(evaluate, 'evaluate_state', interrupt)
    train.train_and_evaluate(config, tmp_path / 'parts')
  again = train.train_and_evaluate(config, tmp_path / 'parts')
  assert quiet(again) == quiet(whole)
  assert rows(tmp_path / 'parts') == rows(tmp_path / 'whole')
  a, b = final_state(tmp_path / 'parts'), final_state(tmp_path / 'whole')
  assert a.keys() == b.keys()
  assert len(a) > 20
  assert sum('ema' in name for name in a) == (
    sum(name.startswith(("['params']", "['batch_stats']")) for name in a) if 'ema' in options else 0
  )
  assert {'ema/val/top1', 'ema/test/loss', 'best/ema/test/top1'} <= again.keys() or not options
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_finished_run_returns_its_metrics_and_is_extended_by_more_epochs(config: dict, tmp_path, capsys) -> None:
  first = train.train_and_evaluate(config, tmp_path / 'run')
  assert train.train_and_evaluate(config, tmp_path / 'run') == first
  assert 'is finished' in capsys.readouterr().out
  train.train_and_evaluate(merged(config, train={'epochs': 6}), tmp_path / 'run')
  assert 'continuing' in capsys.readouterr().out
  steps = [row['step'] for row in rows(tmp_path / 'run')]
  assert steps == sorted(set(steps))
  assert steps[-1] == 36  # 6 epochs of 96 / 16 steps
  assert json.loads((tmp_path / 'run/config.json').read_text())['train']['epochs'] == 6


def test_keep_best_and_early_stopping_look_at_validation(config: dict, tmp_path, monkeypatch) -> None:
  top1 = iter([0.2, 0.6, 0.5, 0.6, 0.9])
  fake = lambda *args: {'val/top1': next(top1), 'test/top1': 0.1}
  monkeypatch.setattr(evaluate, 'evaluate_splits', fake)
  config = merged(config, data={'val': 0.25}, train={'patience': 2, 'epochs': 5})
  found = train.train_and_evaluate(config, tmp_path / 'run')
  assert (found['best/val/top1'], found['val/top1']) == (0.6, 0.6)
  with checkpoint.open(tmp_path / 'run/checkpoints') as manager:
    assert manager.all_steps() == [9, 18]  # the best, at 2 epochs of 72 / 16 steps, and the latest, at 4
  assert found['best/step'] == 9
  assert train.train_and_evaluate(config, tmp_path / 'run') == found  # a stopped run stays stopped


def test_keep_best_and_early_stopping_look_at_the_moving_average(config: dict, tmp_path, monkeypatch) -> None:
  top1 = iter([(0.9, 0.2), (0.1, 0.6), (0.9, 0.5), (0.95, 0.6), (0.97, 0.9)])
  fake = lambda *args: dict(zip(('val/top1', 'ema/val/top1'), next(top1), strict=True)) | {'test/top1': 0.1}
  monkeypatch.setattr(evaluate, 'evaluate_state', fake)
  config = merged(config, data={'val': 0.25}, train={'patience': 2, 'epochs': 5, 'ema': 0.9})
  found = train.train_and_evaluate(config, tmp_path / 'run')
  assert (found['best/ema/val/top1'], found['best/step'], found['val/top1']) == (0.6, 9, 0.95)
  with checkpoint.open(tmp_path / 'run/checkpoints') as manager:
    assert manager.all_steps() == [9, 18]


def test_all_that_is_new_trains_together(config: dict, tmp_path) -> None:
  options = dict(name='lamb', lr=0.05, schedule='onecycle', clip_norm=1.0, l1=1e-5, layer_decay=0.9)
  train_options = dict(loss='sigmoid_xent', label_smoothing=0.1, ema=0.9, accumulate=2, epochs=12)
  config = merged(config, optim=options | {'lr_mult': (('stem/.*', 0.5),)}, train=train_options)
  found = train.train_and_evaluate(merged(config, augment={'crop_pad': 0}), tmp_path / 'run')
  assert found['test/top1'] > 0.9
  assert found['ema/test/top1'] > 0.9
  assert found['train/top1'] > 0.9
  assert found['ema/test/loss'] != found['test/loss']


def test_dry_run_takes_two_steps_aside(config: dict, tmp_path) -> None:
  config = merged(config, train={'dry_run': True, 'epochs': 3}, optim={'warmup_epochs': 2})
  for _ in range(2):
    found = train.train_and_evaluate(config, tmp_path / 'run')
  assert {'train/loss', 'test/top1'} <= found.keys()
  assert [row['step'] for row in rows(tmp_path / 'run/dry_run')] == [2]
  assert [path.name for path in (tmp_path / 'run').iterdir()] == ['dry_run']
  with checkpoint.open(tmp_path / 'run/dry_run/checkpoints') as manager:
    assert manager.all_steps() == [2]


def test_one_batch_is_learnt_by_heart(config: dict, tmp_path) -> None:
  config = merged(config, train={'overfit_one_batch': True, 'epochs': 30}, optim={'warmup_epochs': 5})
  found = train.train_and_evaluate(config, tmp_path / 'run')
  assert found['train/top1'] == 1.0
  assert found['train/loss'] < 0.05
  assert rows(tmp_path / 'run')[-1]['step'] == 200


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': {'name': 'resnet81'}}, r"model.name: unknown model 'resnet81'; did you mean 'resnet18'\?"),
    ({'model': {'num_classes': 3}}, 'model.num_classes: 3, but the data has 4 classes'),
    ({'data': {'batch_size': 12}}, 'data.batch_size: 12 is not divided by 8 devices; use 8 or 16'),
    ({'data': {'batch_size': 0}}, 'data.batch_size: expected 1 or more, found 0'),
    ({'train': {'epochs': 0}}, 'train.epochs: expected more than 0, found 0'),
    ({'train': {'epochs': 1e12}}, 'train.epochs: 1e.12 epochs are .* steps'),
    ({'train': {'eval_every_epochs': 1e-9}}, 'evaluations; expected at most'),
    ({'optim': {'schedule': 'step', 'milestones': (9,)}}, 'optim.milestones: expected epochs between 0 and 4, found'),
    ({'train': {'log_every_steps': 0}}, 'train.log_every_steps: expected more than 0'),
    ({'train': {'patience': -1}}, 'train.patience: expected 0 or more'),
    ({'train': {'patience': 2}}, 'train.patience: early stopping looks at validation top-1; set data.val'),
    ({'train': {'ema': 1.0}}, r'train.ema: expected a decay in \[0, 1\), found 1.0'),
    ({'train': {'accumulate': 0}}, 'train.accumulate: expected 1 or more, found 0'),
    ({'train': {'accumulate': 3}}, 'train.accumulate: 3 parts of a batch of 16 are not equal on 8 devices; use a data'),
    ({'train': {'accumulate': 4}}, 'a data.batch_size that is a multiple of 32'),
    ({'train': {'loss': 'xent'}}, 'train.loss: unknown loss'),
    ({'optim': {'warmup_epochs': 9}}, 'optim.warmup_epochs: 9.0 is not less than the whole training'),
  ],
)
def test_bad_input_ends_before_anything_is_compiled(config: dict, tmp_path, monkeypatch, changes, message: str) -> None:
  monkeypatch.setattr(train, 'restore_or_init', lambda *_: pytest.fail('too late'))
  with pytest.raises(InputError, match=message):
    train.train_and_evaluate(merged(config, **changes), tmp_path / 'run')


def test_a_workdir_of_another_config_is_left_alone(config: dict, tmp_path) -> None:
  train.train_and_evaluate(merged(config, train={'epochs': 1}), tmp_path / 'run')
  before = final_state(tmp_path / 'run')
  with pytest.raises(InputError, match=r'holds a run of another config: optim.lr was 0.1 there and is 0.2 now'):
    train.train_and_evaluate(merged(config, optim={'lr': 0.2}), tmp_path / 'run')
  after = final_state(tmp_path / 'run')
  assert all((before[name] == after[name]).all() for name in before)


def test_a_workdir_of_before_a_field_was_there_continues(config: dict, tmp_path) -> None:
  train.train_and_evaluate(merged(config, train={'epochs': 1}), tmp_path / 'run')
  stored = json.loads((tmp_path / 'run/config.json').read_text())
  del stored['train']['ema'], stored['train']['accumulate'], stored['optim']['lr_mult'], stored['optim']['l1']
  (tmp_path / 'run/config.json').write_text(json.dumps(stored))
  with pytest.raises(InputError, match=r'train.ema was 0.0 there and is 0.9 now'):
    train.train_and_evaluate(merged(config, train={'ema': 0.9}), tmp_path / 'run')
  train.train_and_evaluate(merged(config, train={'epochs': 2}), tmp_path / 'run')
  assert rows(tmp_path / 'run')[-1]['step'] == 12


def test_a_refused_command_leaves_the_workdir_as_it_was(config: dict, tmp_path) -> None:
  config = merged(config, optim={'warmup_epochs': 2})
  train.train_and_evaluate(config, tmp_path / 'run')
  before = (tmp_path / 'run/config.json').read_text()
  for name in ('run', 'other'):
    with pytest.raises(InputError, match='optim.warmup_epochs: 2.0 is not less than the whole training'):
      train.train_and_evaluate(merged(config, train={'epochs': 1}), tmp_path / name)
  assert (tmp_path / 'run/config.json').read_text() == before
  assert not (tmp_path / 'other').exists()


def test_a_workdir_below_a_file(config: dict, tmp_path) -> None:
  (tmp_path / 'file').write_text('x')
  with pytest.raises(InputError, match='--workdir: cannot make .*Not a directory'):
    train.train_and_evaluate(config, tmp_path / 'file/run')


def test_a_workdir_that_is_a_file(config: dict, tmp_path) -> None:
  (tmp_path / 'run').write_text('x')
  with pytest.raises(InputError, match='is a file; expected a directory'):
    train.train_and_evaluate(config, tmp_path / 'run')
