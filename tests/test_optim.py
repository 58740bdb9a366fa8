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


def run(steps: int, **options: object) -> dict:
  tx, _ = optim.make(PARAMS, steps, 10.0, **options)
  params, state = PARAMS, tx.init(PARAMS)
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
    ({'name': 'adamw', 'b2': 0.99}, 'AdamW', {'betas': (0.9, 0.99)}),
  ],
)
def test_the_trajectory_is_torchs(options: dict, torch_name: str, torch_options: dict) -> None:
  torch = pytest.importorskip('torch')
  leaves = jax.tree_util.tree_leaves_with_path(PARAMS)
  tensors = {jax.tree_util.keystr(k): torch.tensor(np.array(v), requires_grad=True) for k, v in leaves}
  kernels = [t for name, t in tensors.items() if 'kernel' in name]
  others = [t for name, t in tensors.items() if 'kernel' not in name]
  groups = [{'params': kernels, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}]
  optimizer = getattr(torch.optim, torch_name)(groups, lr=0.05, **torch_options)
  for step in range(20):
    for tensor in tensors.values():
      tensor.grad = torch.sin(tensor.detach() + step)
    optimizer.step()
  found = run(20, lr=0.05, weight_decay=0.1, schedule='constant', **options)
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    np.testing.assert_allclose(leaf, tensors[jax.tree_util.keystr(path)].detach().numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['sgd', 'nesterov', 'adamw'])
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


def closed_form(name: str, step: int) -> float:
  lr, total, warmup, milestones = 0.4, 100, 20, (50, 80)
  if step < warmup:
    return lr * step / warmup
  if name == 'cosine':
    return lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
  if name == 'step':
    return lr * 0.1 ** sum(step >= m for m in milestones)
  return lr


@pytest.mark.parametrize('name', ['cosine', 'step', 'constant'])
def test_learning_rates_are_the_closed_form(name: str) -> None:
  milestones = (5, 8.0) if name == 'step' else ()
  _, rate = optim.make(PARAMS, 100, 10.0, lr=0.4, schedule=name, warmup_epochs=2, milestones=milestones)
  found = [float(rate(step)) for step in range(101)]
  np.testing.assert_allclose(found, [closed_form(name, step) for step in range(101)], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'lr': -1.0}, 'optim.lr: expected 0 or more, found -1.0'),
    ({'lr': float('nan')}, 'optim.lr: expected 0 or more, found nan'),
    ({'momentum': 1.0}, r'optim.momentum: expected a value in \[0, 1\), found 1.0'),
    ({'warmup_epochs': 10.0}, 'optim.warmup_epochs: 10.0 is not less than the whole training'),
    ({'schedule': 'step'}, 'optim.milestones: give the epochs'),
    ({'milestones': (3,)}, 'optim.milestones: give the epochs'),
    ({'schedule': 'step', 'milestones': (3, 2)}, 'optim.milestones: expected rising epochs'),
    ({'schedule': 'cosin'}, r"optim.schedule: unknown schedule 'cosin'; did you mean 'cosine'\?"),
    ({'name': 'sdg'}, r"optim.name: unknown optimiser 'sdg'; did you mean 'sgd'\?"),
    ({'no_decay': ('bn',)}, "optim.no_decay: 'bn' matches no parameter"),
  ],
)
def test_bad_input(options: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    optim.make(PARAMS, 100, 10.0, **options)
