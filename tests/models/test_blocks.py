"""The parts of a ResNet against closed form: kernels that pick one pixel, and norms that do nothing."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres.models import blocks, layers, ops, stems

# with mean 0, variance 1, scale 1, bias 0 and no epsilon: the identity
NORM = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=0.0)


def normal(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def relu(x: np.ndarray) -> np.ndarray:
  return np.maximum(x, 0)


def tap(kernel: int, row: int, column: int, inputs: int, outputs: int) -> np.ndarray:
  """Return weights ``[kernel, kernel, inputs, outputs]`` that copy channel c of one pixel to channel c."""
  weights = np.zeros((kernel, kernel, inputs, outputs), np.float32)
  weights[row, column] = np.eye(inputs, outputs)
  return weights


def pick(x: np.ndarray, strides: int, down: int, right: int) -> np.ndarray:
  """Return the pixels ``strides * i + down, strides * j + right``, zero outside the image."""
  _, height, width, _ = x.shape
  rows = np.arange(0, height, strides) + down
  columns = np.arange(0, width, strides) + right
  padded = np.pad(x, ((0, 0), (9, 9), (9, 9), (0, 0)))
  return padded[:, rows + 9][:, :, columns + 9]


def max_pool(x: np.ndarray) -> np.ndarray:
  """Return the largest of 3x3 around each other pixel."""
  around = [-1, 0, 1]
  low = x - x.min() + 1  # above the zeros outside
  picked = [pick(low, 2, down, right) for down in around for right in around]
  return np.max(picked, axis=0) + x.min() - 1


def run(module: nn.Module, x: np.ndarray, kernels: dict[str, np.ndarray]) -> np.ndarray:
  """Return ``module(x)`` with these kernels, such as ``{'conv1': ..., 'shortcut/conv': ...}``."""

  def leaf(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> np.ndarray:
    *parents, name = [key.key for key in path[1:]]
    if name == 'kernel':
      return kernels['/'.join(parents)].reshape(like.shape)
    return np.full(like.shape, 1.0 if name in ('scale', 'var') else 0.0, like.dtype)

  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  variables = jax.tree_util.tree_map_with_path(leaf, shapes)
  return np.asarray(jax.jit(module.apply)(variables, x))


def basic(width: int, strides: int, shortcut: str) -> blocks.BasicBlock:
  return blocks.BasicBlock(width, strides, shortcut, layers.Conv, NORM)


def bottleneck(width: int, strides: int, shortcut: str) -> blocks.BottleneckBlock:
  return blocks.BottleneckBlock(width, strides, shortcut, layers.Conv, NORM)


@pytest.mark.parametrize(('kernel', 'pad'), [(1, 0), (3, 1), (5, 2), (7, 3)])
def test_torch_padding(kernel: int, pad: int) -> None:
  assert ops.torch_padding(kernel) == ((pad, pad), (pad, pad))


@pytest.mark.parametrize('size', [(8, 8), (7, 9), (1, 2)])
@pytest.mark.parametrize(
  ('channels', 'outputs', 'strides', 'left'),
  [(4, 8, 2, 2), (4, 7, 2, 1), (4, 4, 2, 0), (3, 8, 1, 2), (4, 4, 1, 0)],
)
def test_pad_shortcut(size: tuple[int, int], channels: int, outputs: int, strides: int, left: int) -> None:
  x = normal(2, *size, channels)
  expected = np.zeros((2, -(-size[0] // strides), -(-size[1] // strides), outputs), np.float32)
  for row in range(expected.shape[1]):
    for column in range(expected.shape[2]):
      pixel = x[:, row * strides, column * strides]
      expected[:, row, column, left : left + channels] = pixel
  np.testing.assert_array_equal(blocks.pad_shortcut(jnp.asarray(x), outputs, strides), expected)


def test_pad_shortcut_keeps_the_dtype() -> None:
  x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
  assert blocks.pad_shortcut(x, 4, 2).dtype == jnp.bfloat16


@pytest.mark.parametrize('size', [(32, 32), (33, 38), (1, 2)])
def test_cifar_stem_keeps_the_size(size: tuple[int, int]) -> None:
  x = normal(2, *size, 3)
  actual = run(stems.CifarStem(4, layers.Conv, NORM), x, {'conv': tap(3, 0, 2, 3, 4)})
  expected = np.zeros((2, *size, 4), np.float32)
  expected[..., :3] = relu(pick(x, 1, -1, 1))
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('size', [(64, 64), (33, 38), (35, 31), (5, 4), (1, 2)])
def test_imagenet_stem_divides_the_size_by_four(size: tuple[int, int]) -> None:
  x = normal(2, *size, 3)
  actual = run(stems.ImageNetStem(4, layers.Conv, NORM), x, {'conv': tap(7, 1, 5, 3, 4)})
  assert actual.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 4)
  np.testing.assert_allclose(actual[..., :3], max_pool(relu(pick(x, 2, -2, 2))), atol=1e-6)
  assert not actual[..., 3].any()


@pytest.mark.parametrize('size', [(8, 8), (7, 9)])
@pytest.mark.parametrize('strides', [1, 2])
def test_projection_is_a_matrix_at_each_pixel(size: tuple[int, int], strides: int) -> None:
  x, kernel = normal(2, *size, 3), normal(1, 1, 3, 5)
  actual = run(blocks.Projection(5, strides, layers.Conv, NORM), x, {'conv': kernel})
  expected = x[:, ::strides, ::strides].astype(np.float64) @ kernel[0, 0]
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('size', [(8, 8), (7, 9)])
@pytest.mark.parametrize('strides', [1, 2])
def test_basic_block_with_pad_shortcut(size: tuple[int, int], strides: int) -> None:
  x = normal(2, *size, 2)
  kernels = {'conv1': tap(3, 0, 2, 2, 4), 'conv2': -tap(3, 2, 1, 4, 4)}
  actual = run(basic(4, strides, 'pad'), x, kernels)
  inner = relu(pick(x, strides, -1, 1))
  expected = np.zeros((*inner.shape[:3], 4), np.float32)
  expected[..., :2] = -pick(inner, 1, 1, 0)
  expected[..., 1:3] += x[:, ::strides, ::strides]
  np.testing.assert_allclose(actual, relu(expected), atol=1e-6)


def test_basic_block_of_one_shape_adds_its_input() -> None:
  x = normal(2, 7, 9, 4)
  kernels = {'conv1': tap(3, 0, 2, 4, 4), 'conv2': -tap(3, 2, 1, 4, 4)}
  actual = run(basic(4, 1, 'projection'), x, kernels)
  inner = relu(pick(x, 1, -1, 1))
  np.testing.assert_allclose(actual, relu(x - pick(inner, 1, 1, 0)), atol=1e-6)


@pytest.mark.parametrize('size', [(8, 8), (7, 9)])
@pytest.mark.parametrize('strides', [1, 2])
def test_bottleneck_has_its_stride_on_the_3x3(size: tuple[int, int], strides: int) -> None:
  # a pixel of odd offset is out of reach where the first 1x1 has the stride
  x, shortcut = normal(2, *size, 3), normal(1, 1, 3, 16)
  kernels = {
    'conv1': tap(1, 0, 0, 3, 4),
    'conv2': tap(3, 0, 2, 4, 4),
    'conv3': -tap(1, 0, 0, 4, 16),
    'shortcut/conv': shortcut,
  }
  actual = run(bottleneck(4, strides, 'projection'), x, kernels)
  expected = x[:, ::strides, ::strides].astype(np.float64) @ shortcut[0, 0]
  expected[..., :3] -= pick(relu(x), strides, -1, 1)
  np.testing.assert_allclose(actual, relu(expected), atol=1e-5)


@pytest.mark.parametrize('make', [basic, bottleneck])
@pytest.mark.parametrize(
  ('grow', 'strides', 'reshapes'),
  [(False, 1, False), (True, 1, True), (False, 2, True), (True, 2, True)],
)
def test_projection_where_the_shape_changes_and_there_alone(
  make: Any, grow: bool, strides: int, reshapes: bool
) -> None:
  outputs = 4 * make(4, 1, 'pad').expansion
  x = jnp.zeros((1, 8, 8, outputs // 2 if grow else outputs))
  shapes = {}
  for shortcut in ('projection', 'pad'):
    block = make(4, strides, shortcut)
    y, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
    assert y.shape == (1, 8 // strides, 8 // strides, outputs)
    shapes[shortcut] = jax.tree.map(jnp.shape, variables['params'])
  projection = shapes['projection'].pop('shortcut', None)
  assert (projection is not None) == reshapes
  if projection is not None:
    assert projection['conv'] == {'kernel': (1, 1, x.shape[-1], outputs)}
    assert projection['bn'] == {'scale': (outputs,), 'bias': (outputs,)}
  assert shapes['pad'] == shapes['projection']
