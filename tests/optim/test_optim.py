import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxres import optim
from jaxres.errors import InputError

PARAMS = {
  'stem': {'conv': {'kernel': jnp.linspace(-1, 1, 6)}, 'bn': {'scale': jnp.ones(3), 'bias': jnp.zeros(3)}},
  'head': {'fc': {'kernel': jnp.linspace(0, 2, 4), 'bias': jnp.ones(2)}},
}


def grads_of(params: dict, step: int) -> dict:
  return jax.tree.map(lambda p: jnp.sin(p + step), params)


def run(steps: int, params: dict = PARAMS, **options: object) -> dict:
  tx, _ = optim.make(params, steps, 10.0, **options)
  state = tx.init(params)
  for step in range(steps):
    updates, state = tx.update(grads_of(params, step), state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.torch
@pytest.mark.parametrize(
  ('options', 'torch_name', 'torch_options'),
  [
    ({'name': 'sgd', 'momentum': 0.0}, 'SGD', {}),
    ({'name': 'sgd', 'momentum': 0.9}, 'SGD', {'momentum': 0.9}),
    ({'name': 'nesterov', 'momentum': 0.9}, 'SGD', {'momentum': 0.9, 'nesterov': True}),
    ({'name': 'adam', 'b2': 0.99, 'eps': 0.1}, 'Adam', {'betas': (0.9, 0.99), 'eps': 0.1}),
    ({'name': 'adamw', 'b2': 0.99}, 'AdamW', {'betas': (0.9, 0.99)}),
    ({'name': 'rmsprop', 'b2': 0.99, 'eps': 0.1, 'momentum': 0.0}, 'RMSprop', {'eps': 0.1}),
    ({'name': 'rmsprop', 'b2': 0.9, 'momentum': 0.8}, 'RMSprop', {'alpha': 0.9, 'momentum': 0.8}),
  ],
)
def test_the_trajectory_is_torchs(options: dict, torch_name: str, torch_options: dict) -> None:
  torch = pytest.importorskip('torch')
  tensors = to_tensors(torch)
  kernels = [t for name, t in tensors.items() if 'kernel' in name]
  others = [t for name, t in tensors.items() if 'kernel' not in name]
  groups = [{'params': kernels, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}]
  optimizer = getattr(torch.optim, torch_name)(groups, lr=0.05, **torch_options)
  for step in range(20):
    for tensor in tensors.values():
      tensor.grad = torch.sin(tensor.detach() + step)
    optimizer.step()
  actual = run(20, lr=0.05, weight_decay=0.1, schedule='constant', **options)
  assert_same(actual, tensors)


def to_tensors(torch) -> dict:
  leaves = jax.tree_util.tree_leaves_with_path(PARAMS)
  return {jax.tree_util.keystr(k): torch.tensor(np.array(v), requires_grad=True) for k, v in leaves}


def assert_same(actual: dict, tensors: dict, atol: float = 1e-6) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(actual):
    np.testing.assert_allclose(leaf, tensors[jax.tree_util.keystr(path)].detach().numpy(), rtol=2e-5, atol=atol)


@pytest.mark.torch
@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_l1_clipping_and_layer_rates_are_torchs(name: str) -> None:
  torch = pytest.importorskip('torch')
  tensors = to_tensors(torch)
  rates = {'stem/conv/kernel': 0.5, 'stem/bn/scale': 0.05, 'stem/bn/bias': 0.05}  # of lr 0.05; others 1
  key = lambda path: "['" + "']['".join(path.split('/')) + "']"
  factors = dict.fromkeys(tensors, 1.0) | {key(path): factor for path, factor in rates.items()}
  groups = [
    {'params': [t], 'lr': 0.05 * factors[k], 'weight_decay': 0.1 if 'kernel' in k else 0.0} for k, t in tensors.items()
  ]
  optimizer = {'sgd': torch.optim.SGD, 'adamw': torch.optim.AdamW}[name](groups)
  norms = []
  for step in range(20):
    for key, tensor in tensors.items():
      tensor.grad = torch.sin(tensor.detach() + step)
      if 'kernel' in key:  # the gradient of a penalty that is part of the loss
        tensor.grad += 0.2 * torch.sign(tensor.detach())
    norms.append(torch.nn.utils.clip_grad_norm_(tensors.values(), 3.0).item())
    optimizer.step()
  assert min(norms) < 3.0 < max(norms)
  actual = run(
    20, name=name, lr=0.05, momentum=0.0, weight_decay=0.1, schedule='constant', l1=0.2, clip_norm=3.0,
    lr_mult=(('stem/conv/.*', 0.5), ('stem/.*', 0.05)),
  )  # fmt: skip
  assert_same(actual, tensors, atol=5e-6)  # torch divides by the norm + 1e-6


def test_lamb_is_the_papers() -> None:
  """Algorithm 2 of You et al. 2019, arXiv:1904.00962, with phi the identity; a ratio with a norm of 0 is 1."""
  leaves = jax.tree_util.tree_leaves_with_path(PARAMS)
  params = {jax.tree_util.keystr(k): np.asarray(v, np.float64) for k, v in leaves}
  m, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(2))
  for step in range(20):
    for k, x in params.items():
      g = np.sin(x + step)
      m[k] = 0.8 * m[k] + 0.2 * g
      v[k] = 0.99 * v[k] + 0.01 * g**2
      r = (m[k] / (1 - 0.8 ** (step + 1))) / (np.sqrt(v[k] / (1 - 0.99 ** (step + 1))) + 0.01)
      update = r + (0.1 * x if 'kernel' in k else 0.0)
      norms = np.linalg.norm(x), np.linalg.norm(update)
      params[k] = x - 0.05 * (norms[0] / norms[1] if all(norms) else 1.0) * update
  options = {'b1': 0.8, 'b2': 0.99, 'eps': 0.01, 'weight_decay': 0.1}
  actual = run(20, name='lamb', lr=0.05, schedule='constant', **options)
  for leaf, expected in zip(jax.tree.leaves(actual), params.values(), strict=True):
    np.testing.assert_allclose(leaf, expected, rtol=2e-5, atol=1e-6)


DEEP = {
  'stem': {'conv': {'kernel': jnp.ones(2)}},
  'stage1': {f'block{i}': {'conv1': {'kernel': jnp.ones(2)}} for i in range(11)},
  'stage2': {'block0': {'conv1': {'kernel': jnp.ones(2)}, 'bn1': {'scale': jnp.ones(2)}}},
  'head': {'fc': {'kernel': jnp.ones(2), 'bias': jnp.ones(2)}},
}


def test_layer_decay_counts_blocks_from_the_head() -> None:
  plain = run(1, DEEP, lr=0.1, weight_decay=0.0, schedule='constant')
  scaled = run(1, DEEP, lr=0.1, weight_decay=0.0, schedule='constant', layer_decay=0.5)
  moved = jax.tree.map(lambda start, a, b: (b - start) / (a - start), DEEP, plain, scaled)
  depth = jax.tree.map(lambda x: 0.0 if x[0] == 1 else -math.log2(x[0]), moved)
  assert depth['head'] == {'fc': {'kernel': 0.0, 'bias': 0.0}}
  actual = [depth['stage1'][f'block{i}']['conv1']['kernel'] for i in range(11)]
  np.testing.assert_allclose(actual, range(12, 1, -1), atol=0.01)  # block10 lies behind block9
  assert jax.tree.leaves(depth['stage2']) == pytest.approx([1.0, 1.0], abs=1e-3)
  assert jax.tree.leaves(depth['stem']) == pytest.approx([13.0], abs=0.02)


def test_layer_decay_and_lr_mult_multiply_and_the_first_match_wins() -> None:
  options = {'lr': 0.1, 'weight_decay': 0.0, 'schedule': 'constant'}
  plain = run(1, DEEP, **options)
  mult = (('.*/bn1/.*', 0.0), ('stage2/.*', 3.0))
  scaled = run(1, DEEP, layer_decay=0.5, lr_mult=mult, **options)
  moved = jax.tree.map(lambda start, a, b: float(((b - start) / (a - start))[0]), DEEP, plain, scaled)
  assert moved['stage2']['block0']['bn1']['scale'] == 0.0
  assert moved['stage2']['block0']['conv1']['kernel'] == pytest.approx(1.5, rel=1e-4)
  assert moved['stage1']['block10']['conv1']['kernel'] == pytest.approx(0.25, rel=1e-4)
  assert moved['head']['fc']['kernel'] == 1.0


def test_the_state_is_that_of_the_optimizer_alone_where_nothing_is_added() -> None:
  """Checkpoints of 0.1.0 hold this structure."""
  state = lambda **options: optim.make(PARAMS, 100, 10.0, **options)[0].init(PARAMS)
  decay = optax.add_decayed_weights(0.1, jax.tree.map(lambda _: True, PARAMS))
  rate = optax.constant_schedule(0.1)
  for nesterov, name in enumerate(('sgd', 'nesterov')):
    expected = optax.chain(decay, optax.sgd(rate, 0.9, nesterov=bool(nesterov))).init(PARAMS)
    assert jax.tree.structure(state(name=name)) == jax.tree.structure(expected)
  expected = optax.adamw(rate, mask=jax.tree.map(lambda _: True, PARAMS)).init(PARAMS)
  assert jax.tree.structure(state(name='adamw')) == jax.tree.structure(expected)


@pytest.mark.parametrize('name', ['sgd', 'nesterov', 'adam', 'adamw', 'lamb', 'rmsprop'])
def test_batch_norm_and_biases_do_not_decay(name: str) -> None:
  plain = run(5, name=name, lr=0.1, weight_decay=0.0, schedule='constant')
  decayed = run(5, name=name, lr=0.1, weight_decay=0.5, schedule='constant')
  same = jax.tree.map(lambda a, b: bool((a == b).all()), plain, decayed)
  assert same == {
    'stem': {'conv': {'kernel': False}, 'bn': {'scale': True, 'bias': True}},
    'head': {'fc': {'kernel': False, 'bias': True}},
  }


def test_no_decay_is_a_list_of_patterns() -> None:
  plain = run(5, lr=0.1, weight_decay=0.0, schedule='constant')
  decayed = run(5, lr=0.1, weight_decay=0.5, schedule='constant', no_decay=('head/.*',))
  same = jax.tree.map(lambda a, b: bool((a == b).all()), plain, decayed)
  assert all(jax.tree.leaves(same['head']))
  assert not any(jax.tree.leaves(same['stem']))


def compute_closed_form(name: str, step: int, warmup: int) -> float:
  lr, total, milestones = 0.4, 100, (50, 80)
  if step < warmup:
    return lr * step / warmup
  if name == 'cosine':
    return lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
  if name == 'step':
    return lr * 0.1 ** sum(step >= m for m in milestones)
  if name == 'exponential':
    return lr * 0.3 ** ((step - warmup) / 10)
  if name == 'polynomial':
    return lr * (1 - (step - warmup) / (total - warmup)) ** 2.5
  return lr


@pytest.mark.parametrize('warmup', [2, 0])
@pytest.mark.parametrize('name', ['cosine', 'step', 'constant', 'exponential', 'polynomial'])
def test_learning_rates_are_the_closed_form(name: str, warmup: int) -> None:
  options = {'step': {'milestones': (5, 8.0)}, 'exponential': {'gamma': 0.3}}.get(name, {})
  _, rate = optim.make(PARAMS, 100, 10.0, lr=0.4, schedule=name, warmup_epochs=warmup, power=2.5, **options)
  actual = [float(jax.jit(rate)(step)) for step in range(101)]
  np.testing.assert_allclose(
    actual, [compute_closed_form(name, step, 10 * warmup) for step in range(101)], rtol=1e-5, atol=1e-8
  )


@pytest.mark.torch
@pytest.mark.parametrize('total', [100, 37])
@pytest.mark.parametrize(('warmup', 'rise'), [(0.0, 0.3), (2.0, 20)])
def test_one_cycle_is_torchs(total: int, warmup: float, rise: float) -> None:
  torch = pytest.importorskip('torch')
  share = rise if rise < 1 else rise / total
  optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
  scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=total, pct_start=share)
  expected = []
  for _ in range(total):
    expected.append(scheduler.get_last_lr()[0])
    optimizer.step()
    scheduler.step() if len(expected) < total else None
  _, rate = optim.make(PARAMS, total, 10.0, lr=0.4, schedule='onecycle', warmup_epochs=warmup)
  np.testing.assert_allclose([float(rate(step)) for step in range(total)], expected, rtol=2e-5, atol=1e-7)


def test_one_cycle_is_the_closed_form_between_a_25th_and_a_250000th() -> None:
  _, rate = optim.make(PARAMS, 101, 10.0, lr=0.5, schedule='onecycle', warmup_epochs=4.1)
  up = [0.02 + 0.48 * (1 - math.cos(math.pi * s / 40)) / 2 for s in range(40)]
  down = [2e-6 + (0.5 - 2e-6) * (1 + math.cos(math.pi * (s - 40) / 60)) / 2 for s in range(40, 101)]
  np.testing.assert_allclose([float(rate(s)) for s in range(101)], up + down, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('total', [1, 2, 3])
def test_every_schedule_is_finite_in_the_shortest_runs(total: int) -> None:
  for name in ('cosine', 'onecycle', 'exponential', 'polynomial', 'constant'):
    _, rate = optim.make(PARAMS, total, 1.0, lr=0.4, schedule=name)
    actual = np.array([float(rate(step)) for step in range(total + 2)])
    assert np.isfinite(actual).all()
    assert ((actual >= 0) & (actual <= 0.4 + 1e-6)).all()
    assert actual.max() > 0.1


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'lr': -1.0}, 'optim.lr: expected 0 or more, found -1.0'),
    ({'lr': float('nan')}, 'optim.lr: expected 0 or more, found nan'),
    ({'momentum': 1.0}, r'optim.momentum: expected a value in \[0, 1\), found 1.0'),
    ({'warmup_epochs': 10.0}, 'optim.warmup_epochs: 10.0 is not less than the '),
    ({'schedule': 'step'}, 'optim.milestones: give the epochs'),
    ({'milestones': (3,)}, 'optim.milestones: give the epochs'),
    ({'schedule': 'step', 'milestones': (3, 2)}, 'optim.milestones: expected rising epochs'),
    ({'schedule': 'cosin'}, r"optim.schedule: unknown schedule 'cosin'; did you mean 'cosine'\?"),
    ({'name': 'sdg'}, r"optim.name: unknown optimizer 'sdg'; did you mean 'sgd'\?"),
    ({'no_decay': ('bn',)}, "optim.no_decay: 'bn' matches no parameter"),
    ({'l1': -0.1}, 'optim.l1: expected 0 or more, found -0.1'),
    ({'clip_norm': float('inf')}, 'optim.clip_norm: expected a finite number, 0 or more, found inf'),
    ({'layer_decay': -1.0}, 'optim.layer_decay: expected 0 or more, found -1.0'),
    ({'power': -1.0}, 'optim.power: expected 0 or more, found -1.0'),
    ({'lr_mult': (('stem/.*', -1.0),)}, 'optim.lr_mult: expected 0 or more, found -1.0'),
    ({'lr_mult': (('stm/.*', 0.1),)}, "optim.lr_mult: 'stm/.*' matches no parameter; names read like"),
    ({'lr_mult': (('(', 0.1),)}, r"optim.lr_mult: '\(' is no regular expression"),
    ({'schedule': 'exponential', 'gamma': 0.01}, 'optim.gamma: 0.01 each epoch leaves less than 1e-9 of optim.lr'),
  ],
)
def test_bad_input(options: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    optim.make(PARAMS, 100, 10.0, **options)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'warmup_epochs': 1e308}, 'warmup_epochs: 1e[+]308 is not less than the training, 100 steps'),
    ({'schedule': 'step', 'milestones': (1e308,)}, 'milestones: expected epochs between 0 and 10'),
    ({'schedule': 'step', 'milestones': (math.nan,)}, 'milestones: expected epochs between 0 and 10'),
    ({'frozen': ('stem/.*',), 'unfreeze': (('.*', 1e308),)}, 'unfreeze: expected epochs from 0 to less than 10'),
    ({'frozen': ('stem/.*',), 'unfreeze': (('.*', math.nan),)}, 'unfreeze: expected epochs from 0 to less than 10'),
    ({'layer_decay': 1e300}, r'layer_decay: expected at most 100.0, found 1e[+]300'),
  ],
)
def test_numbers_of_any_size_are_one_line(options, message) -> None:
  params = {name: {'kernel': np.zeros(2, np.float32)} for name in ('stem', 'stage1', 'head')}
  with pytest.raises(InputError, match=message):
    optim.make(params, 100, 10.0, no_decay=(), **options)
