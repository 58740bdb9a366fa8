import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxres import data, models, optim, trees
from jaxres.data import augment
from jaxres.errors import InputError
from jaxres.models import layers
from jaxres.optim import freezing
from jaxres.runtime import sharding
from jaxres.state import create, init_variables
from jaxres.train import loop
from jaxres.train.gradients import make_loss
from jaxres.train.step import Hyperparameters, make_train_steps
from tests.helpers import classification, merge
from tests.train.runs import KEY, final_state, interrupt_training, stack

BODY = ('(?!head/).*',)  # a linear probe
PARAMS = {
  'stem': {'conv': {'kernel': 0}, 'bn': {'scale': 0, 'bias': 0}},
  'stage1': {'block0': {'conv1': {'kernel': 0}, 'bn1': {'scale': 0, 'bias': 0}}},
  'head': {'fc': {'kernel': 0, 'bias': 0}},
}
STATS = {'stem': {'bn': {'mean': 0, 'var': 0}}, 'stage1': {'block0': {'bn1': {'mean': 0, 'var': 0}}}}


def steps(frozen=(), unfreeze=(), total=100) -> dict[str, float]:
  actual = freezing.unfreeze_steps(PARAMS, frozen, unfreeze, total, 10.0)
  return dict(zip(trees.leaf_names(actual), jax.tree.leaves(actual), strict=True))


def test_each_parameter_has_the_step_it_starts_at() -> None:
  assert set(steps().values()) == {0}
  actual = steps(BODY, (('stage1/.*/kernel', 1.46), ('stage1/.*', 3.0), ('.*/scale', 2.0)))
  assert actual == {
    'stem/conv/kernel': math.inf,
    'stem/bn/scale': 20,
    'stem/bn/bias': math.inf,
    'stage1/block0/conv1/kernel': 15,
    'stage1/block0/bn1/scale': 30,  # the first match counts
    'stage1/block0/bn1/bias': 30,
    'head/fc/kernel': 0,
    'head/fc/bias': 0,
  }


def test_a_norm_is_frozen_as_long_as_all_its_parameters_are() -> None:
  until = freezing.unfreeze_steps(PARAMS, BODY, (('stage1/.*', 3.0), ('.*/scale', 2.0)), 100, 10.0)
  actual = freezing.unfreeze_phases(until, STATS)
  assert [stage.start for stage in actual] == [0, 20, 30]
  assert [stage.norms for stage in actual] == [('stage1/block0/bn1', 'stem/bn'), ('stage1/block0/bn1',), ()]
  assert actual[1].frozen['stem'] == {'conv': {'kernel': True}, 'bn': {'scale': False, 'bias': True}}
  assert [freezing.phase_index(actual, step) for step in (0, 1, 20, 21, 30, 31)] == [0, 0, 0, 1, 1, 2]
  assert freezing.unfreeze_phases(freezing.unfreeze_steps(PARAMS, (), (), 9, 1.0), STATS)[0].norms == ()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'frozen': ('stm/.*',)}, "optim.frozen: 'stm/.*' matches no parameter"),
    ({'frozen': ('.*',)}, 'optim.frozen: all parameters are frozen forever'),
    ({'unfreeze': (('stem/.*', 1.0),)}, "optim.unfreeze: 'stem/.*' matches nothing that optim.frozen freezes"),
    ({'frozen': BODY, 'unfreeze': (('stem/.*', 10.0),)}, 'expected epochs from 0 to less than 10, found 10.0'),
    ({'frozen': BODY, 'unfreeze': (('stem/.*', -1.0),)}, 'expected epochs from 0 to less than 10, found -1.0'),
    ({'frozen': BODY, 'unfreeze': (('stem/.*', math.nan),)}, 'found nan'),
  ],
)
def test_bad_input(options: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    steps(**options)


def train_groups(config: dict, stages: str, steps_: int, devices: int, **options):
  """Return the state before and after training ``stages`` a few steps as ``make_programs`` does, and the parts."""
  mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
  dataset = data.load(**config['data'])
  dataset.place(mesh)
  model = models.create(stages, num_classes=4)
  variables = jax.jit(lambda: init_variables(model, dataset.info.image_shape, jax.random.key(0)))()
  tx, _ = optim.make(variables['params'], 100, 6.0, lr=0.1, **options)
  until = freezing.unfreeze_steps(variables['params'], options.get('frozen', ()), options.get('unfreeze', ()), 100, 6.0)
  actual = freezing.unfreeze_phases(until, variables['batch_stats'])
  first, *later = [
    make_loss(freezing.freeze(model, s), classification(), augment.make(), dataset.info, s.frozen) for s in actual
  ]
  later = [(s.start, loss_fn) for s, loss_fn in zip(actual[1:], later, strict=True)]
  run = make_train_steps(first, lambda _: tx, dataset.train.get_batch, mesh, later=later)
  start = jax.device_put(create(variables, tx), sharding.replicated_sharding(mesh))
  after = jax.tree.map(jnp.copy, start)
  for feed in dataset.train.step_inputs(0, steps_):
    after, _ = run(after, KEY, dataset.train.device_data, stack(feed), Hyperparameters(), None)
  assert run._cache_size() == min(steps_, 1)
  return start, after, model, dataset, actual, run


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('name', ['nesterov', 'adamw'])
def test_gradual_unfreezing_is_a_training_of_each_group_from_its_epoch_on(config, stages, devices, name) -> None:
  """The reference differentiates a sub-tree, and gives each group a separate optimizer when its epoch comes."""
  options = dict(frozen=BODY, unfreeze=(('stage3/.*', 0.5),), name=name, weight_decay=0.01)
  start, after, model, dataset, actual, _ = train_groups(config, stages, 6, devices, **options)
  assert [s.start for s in actual] == [0, 3]
  params, stats = jax.tree.map(np.asarray, (start.params, start.batch_stats))
  groups = {'head': 0, 'stage3': 3}
  _, rate = optim.make(params, 100, 6.0, lr=0.1, **options)
  opts = {
    key: optim.make({key: params[key]}, 100, 6.0, lr=0.1, name=name, weight_decay=0.01, schedule='constant')[0]
    for key in groups
  }
  states = {key: opts[key].init({key: params[key]}) for key in groups}

  @functools.cache
  def gradient(norms):
    network = model.clone(frozen_norms=norms)

    def loss_of(part, rest, stats, images, labels):
      variables = {'params': rest | part, 'batch_stats': stats}
      logits, new = network.apply(variables, images, train=True, mutable=['batch_stats'])
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new['batch_stats']

    return jax.jit(jax.grad(loss_of, has_aux=True))

  for number, feed in enumerate(dataset.train.step_inputs(0, 6)):
    batch = {key: np.asarray(array)[np.asarray(feed['index'])] for key, array in dataset.train.device_data.items()}
    images = augment.normalize(jnp.asarray(batch['image']), dataset.info.mean, dataset.info.std)
    free = [key for key, starts in groups.items() if number >= starts]
    norms = tuple(n.rpartition('/')[0] for n in trees.leaf_names(stats) if n.split('/')[0] not in free)
    grads, stats = gradient(norms)({key: params[key] for key in free}, params, stats, images, batch['label'])
    for key in free:
      part = {key: params[key]}
      updates, states[key] = opts[key].update({key: grads[key]}, states[key], part)
      scale = rate(number) / 0.1
      params = params | optax.apply_updates(part, jax.tree.map(lambda u, scale=scale: u * scale, updates))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=3e-5),
    (after.params, after.batch_stats),
    (params, stats),
  )
  same = lambda key, tree: all(
    map(np.array_equal, jax.tree.leaves(tree(start)[key]), jax.tree.leaves(tree(after)[key]))
  )
  for tree in (lambda s: s.params, lambda s: s.batch_stats):
    assert [key for key in tree(start) if same(key, tree)] == ['stage1', 'stage2', 'stem']


def test_nothing_below_a_linear_probe_is_differentiated(config, stages, monkeypatch) -> None:
  """The convolutions of the complete step are those of one forward pass."""
  monkeypatch.setattr(layers, 'wants_cpu_forms', lambda: False)  # which ask for both gradients; XLA drops one
  programs = {}
  for frozen in (BODY, ('stem/.*', 'stage[12]/.*'), ()):
    start, _, model, dataset, _, run = train_groups(config, stages, 0, 1, frozen=frozen)
    feed = next(dataset.train.step_inputs(0, 1))
    traced = run.trace(start, KEY, dataset.train.device_data, stack(feed), Hyperparameters(), None)
    programs[frozen] = str(traced.jaxpr).count('conv_general_dilated[')
  images = jnp.zeros((16, 8, 8, 3))
  forward = str(jax.make_jaxpr(lambda v: model.apply(v, images, train=False))(start.variables))
  convolutions = forward.count('conv_general_dilated[')
  assert convolutions == 9  # stem, 3 x 2, 2 projections
  actual = [*programs.values()]
  assert actual[0] == 9
  assert 9 < actual[1] <= 9 + 2 * 3  # the last stage: kernels, and inputs of the second convolution
  assert actual[2] > actual[1]


def test_frozen_parameters_have_no_momentum(config, stages) -> None:
  start, *_ = train_groups(config, stages, 0, 1, frozen=BODY, name='adam')
  moments = [leaf for leaf in jax.tree.leaves(start.opt_state) if leaf.ndim]
  assert sorted(leaf.shape for leaf in moments) == [(4,), (4,), (8, 4), (8, 4)]


def test_l1_of_a_frozen_parameter_does_not_count_for_clipping() -> None:
  params = {'stem': {'kernel': jnp.full(9, 5.0)}, 'head': {'kernel': jnp.array([3.0])}}
  options = dict(l1=1.0, clip_norm=1.0, momentum=0.0, weight_decay=0.0, schedule='constant', no_decay=())
  moved = {}
  for frozen in ((), ('stem/.*',)):
    tx, _ = optim.make(params, 10, 1.0, lr=1.0, frozen=frozen, **options)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved[frozen] = float(updates['head']['kernel'][0])
  assert moved[()] == pytest.approx(-1 / math.sqrt(10))
  assert moved['stem/.*',] == pytest.approx(-1.0)
  assert not np.asarray(updates['stem']['kernel']).any()


def test_frozen_leaves_of_a_run_are_byte_identical(config, tmp_path, stages) -> None:
  config = merge(
    config,
    model={'name': stages},
    optim={'frozen': ('stem/.*', 'stage1/.*'), 'weight_decay': 0.1},
    train={'epochs': 2, 'ema': 0.9, 'accumulate': 2, 'recalibrate_bn': 2},
  )
  loop.train_and_evaluate(merge(config, train={'epochs': 0.17}), tmp_path / 'run')  # one step
  before = final_state(tmp_path / 'run')
  loop.train_and_evaluate(config, tmp_path / 'run')
  after = final_state(tmp_path / 'run')
  same = {name for name in before if before[name].tobytes() == after[name].tobytes()}
  expected = {n for n in before if ("['stem']" in n or "['stage1']" in n) and "['opt_state']" not in n}
  assert len(expected) > 20
  assert any('ema' in name and 'mean' in name for name in expected)
  assert expected <= same
  assert not any("['stage2']" in name for name in same)
  assert not any("['stem']" in name for name in before if "['opt_state']" in name)


def test_an_interrupted_unfreezing_ends_bit_identical(config, tmp_path, stages, monkeypatch) -> None:
  thaw = (('stage3/.*', 1.5), ('stage2/.*', 2.5))
  config = merge(config, model={'name': stages}, optim={'frozen': BODY, 'unfreeze': thaw, 'name': 'adamw'})
  config = merge(config, train={'recalibrate_bn': 1})
  loop.train_and_evaluate(config, tmp_path / 'whole')
  interrupt_training(config, tmp_path / 'parts', monkeypatch)
  loop.train_and_evaluate(config, tmp_path / 'parts')
  a, b = final_state(tmp_path / 'parts'), final_state(tmp_path / 'whole')
  assert a.keys() == b.keys()
  assert all(a[name].tobytes() == b[name].tobytes() for name in a)
