"""The models against torch's, the papers' parameter counts and closed form."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import models
from jaxres.errors import InputError
from tests.models.parity import (
  assert_alive,
  assert_near,
  count,
  flat,
  in_torchs_layout,
  nchw,
  random_images,
  random_variables,
  with_statistics,
)

THIN = ('resnet20', 'resnet56')  # whose torch names are akamaster's
# at 10 classes
CIFAR_COUNTS = {
  'resnet20': 269_722,
  'resnet32': 464_154,
  'resnet44': 658_586,
  'resnet56': 853_018,
  'resnet110': 1_727_962,
  'preact_resnet20': 269_722,
  'preact_resnet32': 464_154,
  'preact_resnet44': 658_586,
  'preact_resnet56': 853_018,
  'preact_resnet110': 1_727_962,
  'preact_resnet164': 1_703_258,
  'wrn16_8': 10_961_370,
  'wrn28_10': 36_479_194,
}
SPEEDRUN_COUNT = (
  (24 * 12 + 24) + 9 * (24 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256) + 2 * (64 + 128 + 256) + 2570
)
# at 1000 classes
IMAGENET_COUNTS = {
  'resnet18': 11_689_512,
  'resnet34': 21_797_672,
  'resnet50': 25_557_032,
  'resnet101': 44_549_160,
  'resnet152': 60_192_808,
  'resnet50d': 25_576_264,
  'resnext50_32x4d': 25_028_904,
  'resnext101_32x8d': 88_791_336,
  'wide_resnet50_2': 68_883_240,
  'wide_resnet101_2': 126_886_696,
  'seresnet18': 11_778_592,
  'seresnet50': 28_088_024,
  'preact_resnet18': 11_687_720,
  'preact_resnet50': 25_549_352,
}

# name, arguments of create, image height and width. An odd size tells torch's padding from 'SAME', and a height that
# is not the width tells a transposed image.
PARITY = [
  ('resnet18', {'stem': 'imagenet'}, (64, 64)),
  ('resnet18', {'stem': 'cifar'}, (32, 32)),
  ('resnet34', {'stem': 'imagenet'}, (33, 38)),
  ('resnet34', {'stem': 'cifar'}, (33, 38)),
  ('resnet50', {'stem': 'imagenet'}, (33, 38)),
  ('resnet50', {'stem': 'cifar'}, (32, 32)),
  ('resnet20', {'shortcut': 'pad'}, (33, 38)),
  ('resnet20', {'shortcut': 'projection'}, (33, 38)),
  ('resnet56', {'shortcut': 'pad'}, (32, 32)),
  ('resnet56', {'shortcut': 'projection'}, (32, 32)),
  *(
    pytest.param(slow, marks=pytest.mark.slow)
    for slow in [
      ('resnet101', {'stem': 'imagenet'}, (64, 64)),
      ('resnet101', {'stem': 'cifar'}, (32, 32)),
      ('resnet50d', {'stem': 'deep'}, (65, 70)),
      ('resnext50_32x4d', {}, (65, 70)),
      ('wide_resnet50_2', {}, (64, 64)),
      ('seresnet50', {}, (65, 70)),
      ('preact_resnet50', {}, (65, 70)),
      ('preact_resnet56', {}, (33, 38)),
      ('preact_resnet164', {}, (32, 32)),
      ('wrn16_8', {}, (33, 38)),
    ]
  ),
]


@functools.partial(jax.jit, static_argnames=('model', 'train'))
def apply(model: models.ResNet, variables: Any, images: Any, train: bool) -> tuple[Any, Any]:
  """Return the logits and the statistics after them."""
  return model.apply(variables, images, train=train, mutable=['batch_stats'])


def small(name: str, **options: Any) -> models.ResNet:
  return models.create(name, **{'num_classes': 10, 'dtype': 'float32'} | options)


def init_shapes(model: models.ResNet) -> Any:
  images = jnp.zeros((1, 32, 32, 3))
  return jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))


def initial(model: models.ResNet, wanted: Callable[[str], Any]) -> dict[str, np.ndarray]:
  """Return those leaves of the initial variables whose path is ``wanted``, by path.

  XLA drops the others: to compile the random draws of every kernel takes it many seconds.
  """

  def leaves(key: jax.Array) -> dict[str, jax.Array]:
    variables = flat(model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))
    return {path: leaf for path, leaf in variables.items() if wanted(path)}

  return jax.tree.map(np.asarray, jax.jit(leaves)(jax.random.key(0)))


def init(model: models.ResNet) -> Any:
  """Return the variables that ``model`` starts from, but for the kernels, which NumPy draws."""
  rng = np.random.default_rng(0)
  values = initial(model, lambda path: not path.endswith('kernel'))

  def leaf(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> np.ndarray:
    key = jax.tree_util.keystr(path, simple=True, separator='/')
    deviation = np.sqrt(2 / np.prod(like.shape[:-1]))
    return values[key] if key in values else deviation * rng.standard_normal(like.shape, np.float32)

  return jax.tree_util.tree_map_with_path(leaf, init_shapes(model))


def images(batch: int = 4, size: int = 32) -> np.ndarray:
  """Return images that differ in contrast and color, since pooling averages noise away."""
  rng = np.random.default_rng(0)
  noise = rng.normal(0, 1, (batch, size, size, 3)) * rng.uniform(0.2, 2, (batch, 1, 1, 1))
  return (noise + rng.normal(0, 1, (batch, 1, 1, 3))).astype(np.float32)


def torch_twin(name: str, model: models.ResNet, variables: Any) -> Any:
  """Return the torch network called ``name`` with these variables."""
  from tests import torch_models

  option = 'A' if model.shortcut == 'pad' else 'B'
  return torch_models.load(torch_models.create(name, 10, stem=model.stem_type, option=option), variables)


def case_id(case: tuple[str, dict[str, str], tuple[int, int]]) -> str:
  return '-'.join([case[0], *case[1].values(), str(case[2][0])])


# Sizes and names


@pytest.mark.parametrize(('name', 'expected'), CIFAR_COUNTS.items())
def test_cifar_parameter_counts(name: str, expected: int) -> None:
  assert count(init_shapes(small(name))['params']) == expected


@pytest.mark.parametrize(('name', 'expected'), IMAGENET_COUNTS.items())
def test_imagenet_parameter_counts(name: str, expected: int) -> None:
  # 1000 classes and the ImageNet stem are the defaults
  assert count(init_shapes(models.create(name))['params']) == expected


@pytest.mark.torch
@pytest.mark.parametrize(('name', 'expected'), [*CIFAR_COUNTS.items(), *IMAGENET_COUNTS.items()])
def test_torch_networks_have_these_counts(reference: ModuleType, name: str, expected: int) -> None:
  import torch

  stem = 'deep' if name == 'resnet50d' else 'imagenet'
  with torch.device('meta'):
    net = reference.create(name, 10 if name in CIFAR_COUNTS else 1000, stem=stem)
  assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_cifar_resnet18_parameter_count() -> None:
  assert count(init_shapes(small('resnet18', stem='cifar'))['params']) == 11_173_962


def test_speedrun_parameter_count() -> None:
  assert count(init_shapes(small('resnet8_speedrun'))['params']) == SPEEDRUN_COUNT


def test_list_has_every_model() -> None:
  assert sorted(models.list_models()) == sorted([*CIFAR_COUNTS, *IMAGENET_COUNTS, 'resnet8_speedrun'])


@pytest.mark.parametrize(
  ('arguments', 'nearest'),
  [
    ({'name': 'resnet-50'}, "did you mean 'resnet50'?"),
    ({'name': 'ResNet110'}, "did you mean 'resnet110'?"),
    ({'name': 'vgg'}, 'known: preact_resnet110'),
    ({'dtype': 'bfloat'}, "did you mean 'bfloat16'?"),
    ({'stem': 'dep'}, "did you mean 'deep'?"),
    ({'shortcut': 'avrage'}, "did you mean 'average'?"),
    ({'act': 'leaky'}, "did you mean 'leaky_relu'?"),
  ],
)
def test_unknown_names_are_input_errors(arguments: dict[str, str], nearest: str) -> None:
  with pytest.raises(InputError) as error:
    models.create(**arguments)
  message = str(error.value)
  assert nearest in message
  assert repr(next(iter(arguments.values()))) in message
  assert '\n' not in message


def test_parameter_paths() -> None:
  shapes = init_shapes(small('resnet18'))
  block = 'stage1/block0/'
  first = {f'{block}conv{i}/kernel' for i in (1, 2)}
  first |= {f'{block}bn{i}/{leaf}' for i in (1, 2) for leaf in ('scale', 'bias')}
  rest = {'stem/conv/kernel', 'stem/bn/scale', 'head/fc/kernel', 'head/fc/bias'}
  rest |= {'stage2/block0/shortcut/conv/kernel', 'stage2/block0/shortcut/bn/bias'}
  actual = set(flat(shapes['params']))
  assert {path for path in actual if path.startswith(block)} == first
  assert rest <= actual
  assert {path.split('/')[0] for path in actual} == {
    'stem', 'stage1', 'stage2', 'stage3', 'stage4', 'head'
  }  # fmt: skip
  assert 'stage4/block1/bn2/mean' in flat(shapes['batch_stats'])
  assert 'stage4/block1/bn2/var' in flat(shapes['batch_stats'])


# Structure


def test_features_then_head_is_the_complete_model() -> None:
  model, x = small('resnet20'), images()
  variables = init(model)
  stages = model.apply(variables, x, train=False, method='features')
  assert [(name, stage.shape) for name, stage in stages.items()] == [
    ('stem', (4, 32, 32, 16)),
    ('stage1', (4, 32, 32, 16)),
    ('stage2', (4, 16, 16, 32)),
    ('stage3', (4, 8, 8, 64)),
  ]
  logits = model.apply(variables, stages, method='head')
  np.testing.assert_array_equal(logits, model.apply(variables, x, train=False))
  assert_alive(np.asarray(logits))


def test_train_has_no_default() -> None:
  model = small('resnet20')
  with pytest.raises(TypeError, match='train'):
    model.init(jax.random.key(0), images())


def test_head_pools_and_multiplies() -> None:
  rng = np.random.default_rng(0)
  stage, kernel, bias = (rng.normal(1, 1, shape) for shape in ((3, 8, 7, 64), (64, 10), (10,)))
  stages = {'stage1': None, 'stage3': jnp.asarray(stage, jnp.float32)}  # the last one counts
  fc = {'kernel': jnp.asarray(kernel, jnp.float32), 'bias': jnp.asarray(bias, jnp.float32)}
  logits = small('resnet20').apply({'params': {'head': {'fc': fc}}}, stages, method='head')
  assert_near(logits, stage.mean((1, 2)) @ kernel + bias, 1e-5)


@pytest.mark.parametrize(('name', 'last'), [('resnet18', 'bn2'), ('resnet50', 'bn3')])
@pytest.mark.parametrize('zero', [False, True])
def test_zero_init_residual_zeroes_the_last_norm_alone(name: str, last: str, zero: bool) -> None:
  model = small(name, zero_init_residual=zero)
  scales = initial(model, lambda path: path.endswith('scale'))
  lasts = {path for path in scales if f'/{last}/' in path}
  assert len(lasts) == sum(model.stage_sizes)
  for path, scale in scales.items():
    assert np.unique(scale) == (0 if zero and path in lasts else 1), path


@pytest.mark.parametrize('train', [False, True])
def test_zero_init_residual_makes_blocks_the_identity(train: bool) -> None:
  model, x = small('resnet20', zero_init_residual=True), images()
  variables = init(model)
  stages, _ = model.apply(variables, x, train=train, method='features', mutable=['batch_stats'])
  stem = np.asarray(stages['stem'])
  assert stem.any()
  np.testing.assert_array_equal(stages['stage1'], stem)
  # what is left is the pad shortcut: every other pixel, and zeros on both sides of the channels
  expected = np.zeros((4, 16, 16, 32), np.float32)
  expected[..., 8:24] = stem[:, ::2, ::2]
  np.testing.assert_array_equal(stages['stage2'], expected)
  expected = np.zeros((4, 8, 8, 64), np.float32)
  expected[..., 24:40] = stem[:, ::4, ::4]
  np.testing.assert_array_equal(stages['stage3'], expected)


def test_initial_weights_have_the_published_scales() -> None:
  block = 'params/stage2/block1/'
  paths = {f'{block}conv2/kernel', f'{block}conv3/kernel', 'params/head/fc/kernel'}
  kernels = initial(small('resnet50'), paths.__contains__)
  # He et al. 2015 by fan out, as torchvision: 3x3 to 128 channels, and 1x1 from 128 to 512
  assert kernels[f'{block}conv2/kernel'].std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
  assert kernels[f'{block}conv3/kernel'].std() == pytest.approx(np.sqrt(2 / 512), rel=0.02)
  # torch.nn.Linear: uniform within 1 / sqrt(fan in)
  fc, bound = kernels['params/head/fc/kernel'], 1 / np.sqrt(2048)
  assert np.abs(fc).max() == pytest.approx(bound, rel=0.01)
  assert fc.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)


# Number formats


@pytest.mark.parametrize(
  ('name', 'dtype'),
  [('resnet18', 'bfloat16'), ('resnet50', 'bfloat16'), ('resnet20', 'bfloat16'), ('resnet20', 'float16')],
)
def test_variables_and_logits_are_float32_in_half_precision(name: str, dtype: str) -> None:
  model = small(name, dtype=dtype)
  shapes = init_shapes(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  logits, updates = jax.eval_shape(lambda v, x: apply(model, v, x, train=True), shapes, x)
  assert {leaf.dtype for leaf in jax.tree.leaves((logits, updates))} == {jnp.dtype('float32')}
  stages = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, method='features'), shapes, x)
  assert {stage.dtype for stage in stages.values()} == {jnp.dtype(dtype)}


@pytest.mark.parametrize('train', [False, True])
def test_bfloat16_logits_are_close_to_float32(train: bool) -> None:
  x = images()
  variables = init(small('resnet20'))
  full, _ = apply(small('resnet20'), variables, x, train=train)
  half, _ = apply(small('resnet20', dtype='bfloat16'), variables, x, train=train)
  assert_alive(np.asarray(full))
  assert_near(half, full, 0.02)
  assert np.abs(np.asarray(half) - np.asarray(full)).max() > 0  # bfloat16 it was


# Parity with torch


@pytest.mark.torch
@pytest.mark.parametrize('case', PARITY, ids=case_id)
def test_logits_and_statistics_equal_torch(case: Any, by_torch: Any) -> None:
  name, options, size = case
  model = small(name, **options)
  variables, x = random_variables(model), random_images(4, *size)
  names = {'thin': name in THIN, 'average': model.shortcut == 'average'}
  # batch statistics magnify rounding: at 101 layers torch's own float32 logits are 2e-4 from its float64 ones
  deep = sum(model.stage_sizes) > 30

  def compute() -> dict[str, np.ndarray]:
    import torch

    net = torch_twin(name, model, variables)
    before = in_torchs_layout(variables['batch_stats'], **names)
    with torch.inference_mode():
      logits = net.eval()(nchw(x)).numpy()
      net, images = (net.double(), nchw(x).double()) if deep else (net, nchw(x))
      train, statistics = with_statistics(net, lambda: net.train()(images).numpy(), before)
    return {'logits': logits, 'train_logits': train} | statistics

  expected, pick = by_torch(case_id(case), compute)
  logits, updates = apply(model, variables, x, train=False)
  for before, after in zip(jax.tree.leaves(variables['batch_stats']), jax.tree.leaves(updates), strict=True):
    np.testing.assert_array_equal(before, after)
  with jax.enable_x64(deep):
    wide = in_float64(model, variables, x) if deep else (model, variables, x)
    train_logits, updates = apply(*wide, train=True)
  statistics = in_torchs_layout(updates['batch_stats'], **names)
  actual = {'logits': logits, 'train_logits': train_logits} | statistics
  assert actual.keys() == expected.keys()
  for key, value in expected.items():
    assert_near(pick(actual[key]), value, 1e-4, key)
  for key in ('logits', 'train_logits'):
    assert_alive(expected[key].reshape(4, 10))


def in_float64(model: models.ResNet, variables: Any, x: np.ndarray) -> Any:
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
  return model.clone(dtype=np.float64), wide, x.astype(np.float64)


@pytest.mark.torch
@pytest.mark.parametrize(
  'case',
  [
    ('resnet18', {'stem': 'imagenet'}, (64, 64)),
    ('resnet18', {'stem': 'cifar'}, (33, 38)),
    ('resnet20', {'shortcut': 'pad'}, (33, 38)),
  ],
  ids=case_id,
)
def test_features_equal_torch_layers(by_torch: Any, case: Any) -> None:
  name, options, size = case
  model = small(name, **options)
  variables, x = random_variables(model), random_images(2, *size)

  def compute() -> dict[str, np.ndarray]:
    import torch

    with torch.inference_mode():
      stages = torch_twin(name, model, variables).eval().stages(nchw(x))
    return {stage: value.numpy().transpose(0, 2, 3, 1) for stage, value in stages.items()}

  expected, pick = by_torch(f'features {case_id(case)}', compute)
  stages = jax.jit(functools.partial(model.apply, train=False, method='features'))(variables, x)
  assert stages.keys() == expected.keys()
  for stage, value in expected.items():
    assert 0.1 < (value > 0).mean() < 0.99, f'{stage} is dead, or ReLU does nothing'
    assert_near(pick(stages[stage]), value, 1e-4, stage)


@pytest.mark.torch
@pytest.mark.optimized
@pytest.mark.parametrize(('name', 'options'), [('resnet20', {'shortcut': 'pad'}), ('resnet18', {'stem': 'cifar'})])
def test_train_gradients_equal_torch(by_torch: Any, name: str, options: dict[str, str]) -> None:
  model = small(name, **options)
  variables, x, labels = random_variables(model), random_images(4, 32, 32), np.array([3, 1, 4, 1])

  def compute() -> dict[str, np.ndarray]:
    import torch

    net = torch_twin(name, model, variables)
    loss = torch.nn.functional.cross_entropy(net.train()(nchw(x)), torch.tensor(labels))
    loss.backward()
    gradients = {key: parameter.grad.numpy() for key, parameter in net.named_parameters()}
    return {'loss': loss.detach().numpy()} | gradients

  def loss_fn(params: Any) -> jax.Array:
    logits, _ = apply(model, variables | {'params': params}, x, train=True)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), labels])

  expected, pick = by_torch(f'gradients {name}', compute)
  loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(variables['params'])
  actual = {'loss': loss} | in_torchs_layout(gradients, name in THIN)
  assert actual.keys() == expected.keys()
  for key, value in expected.items():
    assert np.linalg.norm(value) > 0
    assert np.linalg.norm(pick(actual[key]) - value) / np.linalg.norm(value) < 1e-3, key
