"""The hand-written gradients of layers against those of the plain forms, and BatchNorm against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres.models import cpu, layers, ops
from jaxres.models.ops import batch_norm

NEAR = {'rtol': 1e-4, 'atol': 1e-4}


def random(*shape: int, seed: int = 0) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('size', [1, 3, 7])
@pytest.mark.parametrize('strides', [1, 2, 3])
@pytest.mark.parametrize('shape', [(8, 8), (7, 9), (5, 4)])
def test_convolution_has_the_gradients_of_the_plain_form(size: int, strides: int, shape: tuple[int, int]) -> None:
  x, kernel = random(3, *shape, 4), random(size, size, 4, 5, seed=1)
  y, plain = jax.vjp(lambda x, k: ops.conv(x, k, strides), x, kernel)
  same, ours = jax.vjp(lambda x, k: cpu.conv_cpu(x, k, strides), x, kernel)
  np.testing.assert_array_equal(y, same)
  g = random(*y.shape, seed=2)
  for actual, expected in zip(ours(g), plain(g), strict=True):
    np.testing.assert_allclose(actual, expected, **NEAR)


def test_convolution_can_be_differentiated_twice() -> None:
  x, kernel = random(2, 6, 6, 3), random(3, 3, 3, 4, seed=1)

  def curvature(conv):
    gradient = jax.grad(lambda k: (conv(x, k, 2) ** 3).sum())
    return jax.jvp(gradient, (kernel,), (random(3, 3, 3, 4, seed=2),))[1]

  np.testing.assert_allclose(curvature(cpu.conv_cpu), curvature(ops.conv), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_batch_norm_has_the_gradients_of_the_plain_form(dtype) -> None:
  x, scale, bias = 3 * random(6, 5, 4, 7).astype(dtype) + 1, random(7, seed=1), random(7, seed=2)
  weight = random(*x.shape, seed=3)
  actual, expected = (
    jax.value_and_grad(lambda x, s, b, form=form: (form(x, s, b, 1e-5)[0] * weight).sum(), argnums=(0, 1, 2))(
      x, scale, bias
    )
    for form in (cpu.batch_norm_cpu, batch_norm)
  )
  near = NEAR if dtype == jnp.float32 else {'rtol': 2e-2, 'atol': 2e-2}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **near), actual, expected)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_is_flaxs(dtype, train: bool) -> None:
  x = 2 * random(6, 5, 4, 7).astype(dtype) - 1
  ours = layers.BatchNorm(train=train, dtype=dtype)
  theirs = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
  variables = ours.init(jax.random.key(0), x)
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):  # which Flax needs
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))
    variables = jax.tree.map(lambda v: v + 0.5 * jnp.abs(random(*v.shape, seed=4)), variables)
    expected = theirs.apply(variables, x, mutable=['batch_stats'])
  actual = ours.apply(variables, x, mutable=['batch_stats'])
  assert actual[0].dtype == expected[0].dtype
  near = NEAR if dtype == jnp.float32 else {'rtol': 2e-2, 'atol': 2e-2}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **near), actual, expected)


@pytest.mark.parametrize(('name', 'wanted'), [('cpu', True), ('gpu', False), ('tpu', False)])
def test_the_forms_are_for_cpus_whatever_the_jaxlib(monkeypatch, name: str, wanted: bool) -> None:
  monkeypatch.setattr(jax, 'default_backend', lambda: name)
  assert cpu.wants_cpu_forms() == wanted


def test_a_model_that_is_trained_on_a_cpu_takes_them(monkeypatch) -> None:
  seen = []
  monkeypatch.setattr(layers, 'wants_cpu_forms', lambda: True)
  monkeypatch.setattr(cpu, 'conv_cpu', lambda x, kernel, strides: seen.append(strides) or ops.conv(x, kernel, strides))
  x = jnp.ones((1, 8, 8, 4))
  for train in (False, True):
    layers.Conv(4, 3, 2, train=train).init(jax.random.key(0), x)
  layers.Conv(4, 3, 2, groups=2, train=True).init(jax.random.key(0), x)
  assert seen == [2]
