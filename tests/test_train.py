import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxres import checkpoint, data, evaluate, losses, models, optim, sharding, state, train
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
  model = models.create(config['model']['name'], num_classes=4)
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
  'fields',
  [
    {'crop_pad': 1, 'flip': True},
    {'policy': 'trivialaugment', 'resized_crop': (0.5, 1.0), 'mixup': 0.2, 'cutmix': 1.0},
  ],
)
def test_eight_devices_train_as_one_does(config: dict, fields: dict) -> None:
  found = {}
  for devices in (1, 8):
    dataset, *_, step, current = make_parts(config, devices, augment.make(**fields))
    for feed in dataset.train.train_feeds(0, 6):
      current, sums = step(current, dataset.train.constants, feed)
    found[devices] = (current.params, current.batch_stats, sums)
    assert step._cache_size() == 1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found.values())


def test_an_interrupted_run_ends_bit_identical(config: dict, tmp_path, monkeypatch) -> None:
  config = merged(config, data={'val': 0.25})
  whole = train.train_and_evaluate(config, tmp_path / 'whole')
  evaluations, real = [], evaluate.evaluate_splits

  def interrupt(*args):
    evaluations.append(1)
    if len(evaluations) == 3:
      raise KeyboardInterrupt
    return real(*args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(evaluate, 'evaluate_splits', interrupt)
    train.train_and_evaluate(config, tmp_path / 'parts')
  again = train.train_and_evaluate(config, tmp_path / 'parts')
  assert quiet(again) == quiet(whole)
  assert rows(tmp_path / 'parts') == rows(tmp_path / 'whole')
  a, b = final_state(tmp_path / 'parts'), final_state(tmp_path / 'whole')
  assert a.keys() == b.keys()
  assert len(a) > 20
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


def test_a_plan_evaluates_at_every_epoch_and_at_the_end() -> None:
  pipeline = data.resident.Resident(
    data.Arrays(np.zeros((100, 1, 1, 1), np.uint8), np.zeros(100)), batch_size=16, seed=0
  )
  plan = train.make_plan(pipeline, 2.5, 1.0, False, False)
  assert plan == train.Plan(16, 6.25, (6, 12, 16))
  assert list(plan.segments(0)) == [(0, 6), (6, 12), (12, 16)]
  assert list(plan.segments(7)) == [(7, 12), (12, 16)]
  assert list(plan.segments(16)) == []
  assert train.make_plan(pipeline, 1.0, 0.5, False, False).eval_steps == (3, 6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': {'name': 'resnet81'}}, r"model.name: unknown model 'resnet81'; did you mean 'resnet18'\?"),
    ({'model': {'num_classes': 3}}, 'model.num_classes: 3, but the data has 4 classes'),
    ({'data': {'batch_size': 12}}, 'data.batch_size: 12 is not divided by 8 devices; use 8 or 16'),
    ({'data': {'batch_size': 0}}, 'data.batch_size: expected 1 or more, found 0'),
    ({'train': {'epochs': 0}}, 'train.epochs: expected more than 0, found 0'),
    ({'train': {'log_every_steps': 0}}, 'train.log_every_steps: expected more than 0'),
    ({'train': {'patience': -1}}, 'train.patience: expected 0 or more'),
    ({'train': {'patience': 2}}, 'train.patience: early stopping looks at validation top-1; set data.val'),
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


def test_a_workdir_that_is_a_file(config: dict, tmp_path) -> None:
  (tmp_path / 'run').write_text('x')
  with pytest.raises(InputError, match='is a file; expected a directory'):
    train.train_and_evaluate(config, tmp_path / 'run')
