"""Every kind of block, stem, shortcut and activation, in networks of three blocks, against torch and closed form."""

import functools
import itertools
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import models
from jaxres.errors import InputError
from jaxres.models import blocks, layers, resnet
from tests.models.parity import (
  assert_alive,
  assert_near,
  draw,
  flat,
  in_torchs_layout,
  nchw,
  random_images,
  random_variables,
  with_statistics,
)

BLOCKS = {
  'Basic': blocks.BasicBlock,
  'Bottleneck': blocks.BottleneckBlock,
  'PreactBasic': blocks.PreactBasicBlock,
  'PreactBottleneck': blocks.PreactBottleneckBlock,
}


class Case(NamedTuple):
  """A network, its images, and what the torch network is given for them."""

  block: str
  stem: str = 'cifar'
  options: dict[str, Any] = {}  # noqa: RUF012
  channels: int = 3
  stem_width: int | None = None


# Three blocks: of stride 1, of one shape, of stride 2. Where a block's first convolution leaves the channels as they
# are, it is the stem that is narrower.
CASES = {
  'deep-average': Case('Basic', 'deep', {'shortcut': 'average'}),
  'bottleneck-deep-average': Case('Bottleneck', 'deep', {'shortcut': 'average'}, channels=1),
  'resnext': Case('Bottleneck', 'imagenet', {'groups': 4, 'width_per_group': 16}),
  'basic-groups': Case('Basic', 'cifar', {'groups': 4, 'width_per_group': 32}),
  'wide-bottleneck': Case('Bottleneck', 'cifar', {'width_per_group': 128}, channels=4),
  'se-pad': Case('Basic', 'cifar', {'se': True, 'shortcut': 'pad'}),
  'se-bottleneck': Case('Bottleneck', 'imagenet', {'se': True, 'groups': 2, 'width_per_group': 32}),
  'preact': Case('PreactBasic', 'imagenet'),
  'preact-pad': Case('PreactBasic', 'cifar', {'shortcut': 'pad'}),
  'wrn': Case('PreactBasic', 'cifar', stem_width=8, channels=1),
  'preact-bottleneck': Case('PreactBottleneck', 'imagenet'),
  'preact-all': Case(
    'PreactBottleneck', 'deep', {'se': True, 'shortcut': 'average', 'groups': 4, 'width_per_group': 16, 'act': 'silu'}
  ),
  'gelu-deep': Case('Basic', 'deep', {'act': 'gelu'}),
  'leaky_relu': Case('Bottleneck', 'cifar', {'act': 'leaky_relu'}),
  'silu': Case('Basic', 'imagenet', {'act': 'silu'}),
}
SIZES, WIDTHS = (2, 1), (16, 32)


def build(case: Case, **options: Any) -> models.ResNet:
  return models.ResNet(
    SIZES,
    WIDTHS,
    BLOCKS[case.block],
    num_classes=5,
    stem_type=case.stem,
    stem_width=case.stem_width,
    **case.options | options,
  )


def shapes(model: models.ResNet, channels: int = 3, size: tuple[int, int] = (16, 16)) -> Any:
  images = jnp.zeros((1, *size, channels))
  return jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))


def tiny(block: str, **options: Any) -> tuple[models.ResNet, Any, np.ndarray]:
  """Return a network of two blocks, random variables, and images ``[8, 6, 6, 3]``."""
  model = models.ResNet((1, 1), (4, 8), BLOCKS[block], num_classes=5, stem_type='cifar', **options)
  return model, draw(shapes(model)), np.random.default_rng(1).standard_normal((8, 6, 6, 3), np.float32)


def key(seed: int) -> jax.Array:
  """Return a key whose draws compile four times as fast as the default's."""
  return jax.random.key(seed, impl='rbg')


# Parity with torch


def torch_twin(case: Case, variables: Any) -> Any:
  """Return the torch network of ``case`` with these variables."""
  from tests import torch_models

  block = getattr(torch_models, case.block)
  width = case.stem_width
  net = torch_models.ResNet(block, SIZES, 5, case.stem, WIDTHS, width, case.channels, **case.options)
  return torch_models.load(net, variables)


@pytest.mark.torch
@pytest.mark.parametrize('name', CASES)
def test_stages_and_logits_and_statistics_equal_torch(by_torch: Any, name: str) -> None:
  case = CASES[name]
  model = build(case)
  average = case.options.get('shortcut') == 'average'
  size = (17, 22) if case.stem == 'cifar' else (65, 74)  # odd, and odd again after the strides
  variables = random_variables(model, channels=case.channels)
  x = random_images(4, *size, channels=case.channels)

  def compute() -> dict[str, np.ndarray]:
    import torch

    net = torch_twin(case, variables)
    before = in_torchs_layout(variables['batch_stats'], False, average)
    with torch.inference_mode():
      stages = {k: v.numpy().transpose(0, 2, 3, 1) for k, v in net.eval().stages(nchw(x)).items()}
      logits = {'logits': net(nchw(x)).numpy()}
      train, statistics = with_statistics(net, lambda: net.train()(nchw(x)).numpy(), before)
    return stages | logits | {'train_logits': train} | statistics

  @jax.jit
  def both(variables: Any, x: Any) -> tuple[Any, Any, Any, Any]:
    stages = model.apply(variables, x, train=False, method='features')
    logits, updates = model.apply(variables, x, train=True, mutable=['batch_stats'])
    return stages, model.apply(variables, stages, method='head'), logits, updates

  expected, pick = by_torch(f'family {name}', compute)
  stages, logits, train_logits, updates = both(variables, x)
  statistics = in_torchs_layout(updates['batch_stats'], False, average)
  actual = stages | {'logits': logits, 'train_logits': train_logits} | statistics
  assert actual.keys() == expected.keys()
  for key, value in expected.items():
    assert_near(pick(actual[key]), value, 1e-4, key)
  for stage in stages:
    assert 0.05 < (expected[stage] > 0).mean() < 0.99, f'{stage} is dead, or the activation does nothing'
  for key in ('logits', 'train_logits'):
    assert_alive(expected[key].reshape(4, 5))


@pytest.mark.torch
def test_gradients_equal_torch(by_torch: Any) -> None:
  case = CASES['preact-all']
  model = build(case)
  variables = random_variables(model)
  x, weights = random_images(4, 33, 38), random_images(4, 1, 5, seed=1)[:, 0, :, 0]

  def compute() -> dict[str, np.ndarray]:
    net = torch_twin(case, variables)
    (net.train()(nchw(x)) * nchw(weights[:, None, None])[:, :, 0, 0]).sum().backward()
    return {key: parameter.grad.numpy() for key, parameter in net.named_parameters()}

  @jax.jit
  @jax.grad
  def gradient(params: Any) -> Any:
    logits, _ = model.apply(variables | {'params': params}, x, train=True, mutable=['batch_stats'])
    return (logits * weights).sum()

  expected, pick = by_torch('family gradients', compute)
  actual = in_torchs_layout(gradient(variables['params']), False, average=True)
  assert actual.keys() == expected.keys()
  largest = max(np.linalg.norm(value) for value in expected.values())
  for key, value in expected.items():
    # a bias before a norm has no gradient but for rounding
    assert np.linalg.norm(pick(actual[key]) - value) < 1e-3 * np.linalg.norm(value) + 1e-5 * largest, key


# Shapes and names


@pytest.mark.parametrize(
  ('case', 'size', 'channels'),
  [*zip(CASES.values(), itertools.cycle([(1, 1), (2, 7), (33, 50), (5, 4)]), itertools.cycle([1, 2, 5]))],
  ids=CASES,
)
def test_images_of_any_size_and_channels(case: Case, size: tuple[int, int], channels: int) -> None:
  model = build(case, dtype=jnp.bfloat16)
  images = jnp.zeros((2, *size, channels))

  def both(key: jax.Array) -> Any:
    stages, variables = model.init_with_output(key, images, train=False, method='features')
    return stages, model.init_with_output(key, stages, method='head')[0], variables

  stages, logits, variables = jax.eval_shape(both, jax.random.key(0))
  expansion = BLOCKS[case.block].expansion
  first = 1 if case.stem == 'cifar' else 4
  for name, strides, width in (
    ('stem', first, case.stem_width or 16),
    ('stage1', first, 16 * expansion),
    ('stage2', 2 * first, 32 * expansion),
  ):
    assert stages[name].shape == (2, *(-(-side // strides) for side in size), width)
    assert stages[name].dtype == jnp.bfloat16  # no part goes back to float32
  assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('name', 'present', 'absent'),
  [
    ('se-pad', {'stage1/block0/se/reduce/kernel', 'stage1/block0/se/expand/bias'}, {'stage2/block0/shortcut/bn/bias'}),
    ('deep-average', {'stem/conv1/kernel', 'stem/conv3/kernel', 'stem/bn3/scale'}, {'stem/conv/kernel', 'norm/scale'}),
    ('preact', {'norm/scale', 'norm/bias', 'stage2/block0/shortcut/conv/kernel'}, {'stem/bn/scale'}),
    ('preact-all', {'stem/bn2/scale', 'stage1/block0/bn3/scale', 'norm/scale'}, {'stem/bn3/scale'}),
    ('preact-bottleneck', {'stage1/block0/shortcut/conv/kernel'}, {'stage1/block0/shortcut/bn/scale'}),
  ],
)  # fmt: skip
def test_parameter_names(name: str, present: set[str], absent: set[str]) -> None:
  actual = set(flat(shapes(build(CASES[name]))['params']))
  assert present <= actual
  assert not absent & actual
  assert {path.split('/')[0] for path in actual} - {'norm'} == {'stem', 'stage1', 'stage2', 'head'}


def test_rows_are_their_papers() -> None:
  """What parameter counts cannot tell."""
  assert models.create('preact_resnet110').shortcut == 'pad'
  wrn = models.create('wrn28_10')
  assert (wrn.stage_sizes, wrn.widths, wrn.stem_type, wrn.dropout_at) == ((4, 4, 4), (160, 320, 640), 'cifar', 'blocks')
  assert models.create('preact_resnet50').stem_type == 'imagenet'
  assert {models.create(name).dropout_at for name in models.list_models() if not name.startswith('wrn')} == {'head'}


# Dropout and stochastic depth


def rates(model: models.ResNet) -> dict[str, float]:
  """Return the rate of each Dropout that is not 0, by path."""
  actual = {}

  def note(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, nn.Dropout) and context.module.rate:
      actual['/'.join(context.module.path)] = context.module.rate
    return run(*args, **kwargs)

  with nn.intercept_methods(note):
    shapes(model)
  return actual


def test_linear_decay() -> None:
  assert resnet.linear_decay(0.5, (1, 2, 1)) == [(0.125,), (0.25, 0.375), (0.5,)]
  assert resnet.linear_decay(0.0, (2,)) == [(0.0, 0.0)]


@pytest.mark.parametrize('name', ['resnet20', 'preact_resnet20', 'wrn16_8', 'resnet50'])
def test_where_the_rates_go(name: str) -> None:
  model = models.create(name, dropout=0.3, stochastic_depth=0.5)
  paths = [f'stage{i + 1}/block{j}' for i, size in enumerate(model.stage_sizes) for j in range(size)]
  expected = {f'{path}/stochastic_depth': pytest.approx(0.5 * (i + 1) / len(paths)) for i, path in enumerate(paths)}
  dropped = [f'{path}/dropout' for path in paths] if name.startswith('wrn') else ['head/dropout']
  assert rates(model) == expected | dict.fromkeys(dropped, 0.3)
  assert rates(models.create(name)) == {}


@pytest.mark.parametrize('block', BLOCKS.values(), ids=BLOCKS)
def test_stochastic_depth_drops_complete_branches_of_examples(block: Any) -> None:
  rate, batch = 0.25, 400
  norm = functools.partial(nn.BatchNorm, use_running_average=True)
  channels = 4 * block.expansion
  # the activation is the identity; a gate that came after the scaling would change with it
  make = functools.partial(block, 4, 1, 'projection', layers.Conv, norm, act=lambda y: y, se=True)
  x = np.random.default_rng(0).standard_normal((batch, 2, 2, channels), np.float32)
  variables = draw(jax.eval_shape(make().init, jax.random.key(1), x))
  dropping = make(drop=functools.partial(nn.Dropout, deterministic=False), stochastic_depth=rate)
  branch, actual = jax.jit(
    lambda: (make().apply(variables, x), dropping.apply(variables, x, rngs={'dropout': key(2)}))
  )()
  branch, actual = np.asarray(branch) - x, np.asarray(actual) - x
  kept = np.abs(actual).max(axis=(1, 2, 3)) > 1e-6
  np.testing.assert_allclose(actual[kept], branch[kept] / (1 - rate), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(actual[~kept], 0)
  assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / batch)


def test_dropout_before_the_classifier() -> None:
  model = models.create('resnet20', num_classes=64, dropout=0.25)
  pooled = jnp.linspace(1, 2, 64)
  stages = {'stage3': jnp.broadcast_to(pooled, (200, 2, 2, 64))}
  variables = {'params': {'head': {'fc': {'kernel': jnp.eye(64), 'bias': jnp.zeros(64)}}}}
  logits = model.apply(variables, stages, train=True, method='head', rngs={'dropout': key(0)})
  kept = np.asarray(logits) > 0
  np.testing.assert_allclose(logits, np.where(kept, pooled / 0.75, 0), rtol=1e-6)
  assert kept.mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.25 * 0.75 / kept.size))
  np.testing.assert_allclose(model.apply(variables, stages, method='head'), np.tile(pooled, (200, 1)), rtol=1e-6)


def test_dropout_in_blocks_is_before_the_last_convolution() -> None:
  norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=0.0)
  x = jnp.ones((100, 1, 1, 4))
  block = functools.partial(blocks.PreactBasicBlock, 4, 1, 'projection', layers.Conv, norm)
  center = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
  identity = {'scale': jnp.ones(4), 'bias': jnp.zeros(4)}
  params = {'bn1': identity, 'conv1': {'kernel': center}, 'bn2': identity, 'conv2': {'kernel': center}}
  stats = {'mean': jnp.zeros(4), 'var': jnp.ones(4)}
  variables = {'params': params, 'batch_stats': {'bn1': stats, 'bn2': stats}}
  dropping = block(dropout=0.5, drop=functools.partial(nn.Dropout, deterministic=False))
  branch = np.asarray(dropping.apply(variables, x, rngs={'dropout': key(0)})) - 1
  # single values fall, and nothing after them but conv2, which copies: no norm with separate statistics
  assert set(np.unique(branch)) == {0, 2}
  assert 0.4 < (branch == 0).mean() < 0.6


def test_no_rng_is_needed_where_nothing_is_dropped() -> None:
  model, variables, images = tiny('PreactBasic')
  dropping = model.clone(dropout=0.5, stochastic_depth=0.5)
  train = lambda net: jax.eval_shape(
    functools.partial(net.apply, train=True, mutable=['batch_stats']), variables, images
  )
  evaluate = lambda net: str(jax.make_jaxpr(functools.partial(net.apply, train=False))(variables, images))
  train(model)
  with pytest.raises(flax.errors.InvalidRngError, match='dropout'):
    train(dropping)
  assert evaluate(dropping) == evaluate(model)  # the same program, not only the same values


@pytest.mark.parametrize('field', ['dropout', 'stochastic_depth'])
@pytest.mark.parametrize('value', [-0.1, 1.0, 1.5, float('nan')])
def test_rates_out_of_range_are_input_errors(field: str, value: float) -> None:
  with pytest.raises(InputError, match=rf'^model\.{field}: expected a value .* found {value}$'):
    models.create('resnet20', **{field: value})


# Rematerialisation and initial values


def test_remat_changes_no_value_and_computes_blocks_again() -> None:
  model, variables, images = tiny('Basic', dropout=0.2, dropout_at='blocks', stochastic_depth=0.5)

  def compute(params: Any, net: models.ResNet) -> Any:
    variables_ = variables | {'params': params}
    logits, updates = net.apply(variables_, images, train=True, mutable=['batch_stats'], rngs={'dropout': key(3)})
    return (logits**2).sum(), (logits, updates)

  results, convolutions = [], []
  for remat in (False, True):
    net = model.clone(remat=remat)
    lowered = jax.jit(jax.grad(functools.partial(compute, net=net), has_aux=True)).lower(variables['params'])
    convolutions.append(lowered.as_text().count('stablehlo.convolution'))
    results.append(lowered.compile()(variables['params']))
    assert jax.tree.structure(shapes(net)) == jax.tree.structure(variables)
  assert_alive(np.asarray(results[0][1][0]))
  for path, plain in flat(results[0]).items():
    assert_near(flat(results[1])[path], plain, 1e-5, path)
  assert convolutions[1] >= convolutions[0] + 4  # two in each block


@pytest.mark.parametrize(('block', 'last'), [('PreactBasic', 'conv2'), ('PreactBottleneck', 'conv3')])
def test_zero_init_of_pre_activation_blocks_zeroes_the_last_kernel_which_then_learns(block: str, last: str) -> None:
  model, variables, images = tiny(block, zero_init_residual=True)

  @jax.jit
  def zeros(key: jax.Array) -> dict[str, jax.Array]:  # XLA drops the other draws
    params = flat(model.init(key, images, train=False)['params'])
    some = [path for path in params if path.endswith(f'{last}/kernel')] + ['stage1/block0/conv1/kernel']
    return {path: (params[path] != 0).any() for path in some}

  actual = zeros(key(0))
  assert len(actual) == 3
  for path, nonzero in actual.items():
    assert bool(nonzero) == path.endswith('conv1/kernel')
  params = variables['params']
  for stage in ('stage1', 'stage2'):
    params[stage]['block0'][last]['kernel'][:] = 0

  @jax.jit
  @jax.grad
  def gradient(params: Any) -> jax.Array:
    logits, _ = model.apply(variables | {'params': params}, images, train=True, mutable=['batch_stats'])
    return (logits[:, 0] ** 2).sum()

  grads = gradient(params)
  for stage in ('stage1', 'stage2'):
    assert np.abs(grads[stage]['block0'][last]['kernel']).max() > 1e-4, f'{stage} is kept at zero'
