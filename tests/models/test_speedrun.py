"""The parts of the speedrun network: against torch, NumPy and the definition of whitening."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import models, weights
from jaxres.errors import InputError
from jaxres.models import speedrun
from tests.models.parity import assert_alive, assert_near, draw


def images(count: int, size: int) -> np.ndarray:
  """Smooth noise: neighbors are correlated, as in photographs."""
  noise = np.random.default_rng(0).normal(size=(count, size + 2, size + 2, 3))
  return sum(noise[:, i : i + size, j : j + size] for i in range(3) for j in range(3)).astype(np.float32)


def test_the_kernel_whitens() -> None:
  x = images(64, 12)
  kernel = speedrun.whitening_kernel(x)
  assert kernel.shape == (2, 2, 3, 24)
  np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
  features = jax.lax.conv_general_dilated(
    x, kernel[..., :12], (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  rows = np.asarray(features, np.float64).reshape(-1, 12)
  np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(12), atol=1e-2)  # less 1 by the epsilon


def test_whitening_changes_the_stems_kernel_alone() -> None:
  model = models.create('resnet8_speedrun', num_classes=10)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
  changed = speedrun.whiten(variables, images(8, 16))
  kernel = changed['params']['stem']['conv'].pop('kernel')
  assert not np.allclose(kernel, variables['params']['stem']['conv'].pop('kernel'), atol=0.1)
  jax.tree.map(np.testing.assert_array_equal, changed, variables)


def test_the_stems_kernel_has_no_gradient_and_its_bias_has() -> None:
  model = models.create('resnet8_speedrun', num_classes=10)
  x = images(8, 16)
  variables = model.init(jax.random.key(0), x, train=False)

  def loss(params):
    logits, _ = model.apply(variables | {'params': params}, x, train=True, mutable=['batch_stats'])
    return jnp.square(logits).sum()

  gradient = jax.grad(loss)(variables['params'])
  actual = {jax.tree_util.keystr(path): np.abs(leaf).max() for path, leaf in jax.tree.leaves_with_path(gradient)}
  assert actual.pop("['stem']['conv']['kernel']") == 0
  assert min(actual.values()) > 0


@pytest.mark.parametrize('shape', [(3, 3, 4, 6), (3, 3, 6, 4), (3, 3, 5, 5)])
def test_the_first_filters_pass_the_input_on(shape) -> None:
  kernel = np.asarray(speedrun.partial_identity(jax.random.key(0), shape))
  same = min(shape[2:])
  expected = np.zeros((*shape[:3], same))
  expected[1, 1, :same, :same] = np.eye(same)
  np.testing.assert_array_equal(kernel[..., :same], expected)
  rest = kernel[..., same:]
  limit = (9 * shape[2]) ** -0.5
  assert rest.size == 0 or 0.9 * limit < np.abs(rest).max() <= limit


@pytest.mark.parametrize('size', [(6, 8), (7, 5)])
def test_max_pool_and_its_gradient_are_flaxs(size: tuple[int, int]) -> None:
  x = jnp.asarray(images(2, 8)[:, : size[0], : size[1]])
  weight = jnp.arange(2.0 * (size[0] // 2) * (size[1] // 2) * 3).reshape(2, size[0] // 2, size[1] // 2, 3)
  actual, expected = (
    jax.value_and_grad(lambda x, pool=pool: (pool(x) * weight).sum())(x)
    for pool in (speedrun.max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2)))
  )
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
  np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels_have_as_many_filters_as_whiten_them(channels: int) -> None:
  model, x = models.create('resnet8_speedrun', num_classes=10), np.ones((2, 9, 9, channels), np.float32)
  variables = model.init(jax.random.key(0), x, train=False)
  shape = variables['params']['stem']['conv']['kernel'].shape
  assert speedrun.whitening_kernel(np.random.default_rng(0).normal(size=(4, 9, 9, channels))).shape == shape
  assert model.apply(variables, x, train=False).shape == (2, 10)


def test_images_that_are_too_small_are_one_line() -> None:
  with pytest.raises(InputError, match='model.name: the images are too small'):
    models.create('resnet8_speedrun').init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


def test_its_weights_go_to_torchs_names_and_back() -> None:
  model = models.create('resnet8_speedrun', num_classes=10)
  variables = speedrun.whiten(model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False), images(8, 16))
  state_dict = weights.from_variables(variables, model)
  assert {'conv1.weight', 'conv1.bias', 'layer3.0.bn2.bias', 'layer3.0.bn2.running_var'} <= state_dict.keys()
  actual = weights.recognize(state_dict)
  assert (actual.name, actual.channels) == ('resnet8_speedrun', 3)
  again = weights.to_variables(state_dict, models.create(actual.name, **actual.options))
  jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.torch
def test_the_network_is_torchs(by_torch) -> None:
  model = models.create('resnet8_speedrun', num_classes=10)
  x = images(4, 32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
  variables = draw(shapes)
  params, stats = variables['params'], variables['batch_stats']

  def compute():
    import torch
    from torch.nn import functional

    weight = lambda module: torch.tensor(module['kernel'].transpose(3, 2, 0, 1))

    def norm(y, block, name):
      local = stats[block]['block0'][name]
      return functional.batch_norm(
        y,
        torch.tensor(local['mean']),
        torch.tensor(local['var']),
        None,
        torch.tensor(params[block]['block0'][name]['bias']),
      )

    conv = params['stem']['conv']
    y = functional.gelu(
      functional.conv2d(torch.tensor(x.transpose(0, 3, 1, 2)), weight(conv), torch.tensor(conv['bias']))
    )
    for name in ('stage1', 'stage2', 'stage3'):
      block = params[name]['block0']
      y = functional.max_pool2d(functional.conv2d(y, weight(block['conv1']), padding=1), 2)
      y = functional.gelu(norm(y, name, 'bn1'))
      y = functional.gelu(norm(functional.conv2d(y, weight(block['conv2']), padding=1), name, 'bn2') + y)
    fc = params['head']['fc']
    return {
      'logits': functional.linear(y.amax((2, 3)), torch.tensor(fc['kernel'].T), torch.tensor(fc['bias'])).numpy() / 9
    }

  expected, pick = by_torch('speedrun', compute)
  actual = model.apply(variables, x, train=False)
  assert_alive(expected['logits'].reshape(4, 10))
  assert_near(pick(actual), expected['logits'], 1e-4)
