"""Convolutions that oneDNN computes: where a program holds them, and that they are those of the plain forms."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxres import data
from jaxres.data import augment
from jaxres.data.resident import Resident
from jaxres.data.types import Arrays
from jaxres.models import ResNet, blocks, cpu, ops
from jaxres.runtime import compiler, onednn, sharding, xla_flags
from jaxres.state import create, init_variables
from jaxres.train.gradients import make_loss
from jaxres.train.step import Hyperparameters, make_train_steps
from tests.helpers import classification

OFF: dict[str, str | bool] = {xla_flags.YNNPACK: ''}  # neither YNNPACK nor oneDNN
NEAR = {'float32': 1e-5, 'bfloat16': 8e-3}  # of the largest value; a bfloat16 has 8 bits
INFO = data.Info(tuple('abcd'), (16, 16, 3), (0.5, 0.4, 0.6), (0.2, 0.3, 0.25))
KEY = jax.random.key(0)

# kernel, strides, channels in and out, height and width, examples
CASES = [
  *[(kernel, strides, 16, 24, (9, 8), 7) for kernel in (1, 3, 5, 7) for strides in (1, 2, 3)],
  *[(3, strides, channels, 32, (8, 8), 33) for strides in (1, 2) for channels in (3, 30, 64)],
  *[(kernel, strides, 30, 16, (7, 11), 1) for kernel in (1, 3) for strides in (1, 2)],
  *[(3, strides, 3, 16, (33, 31), 7) for strides in (1, 2)],
  *[(kernel, strides, 64, 30, (8, 7), 64) for kernel in (1, 3) for strides in (1, 2)],
]


@pytest.fixture(params=['float32', 'bfloat16'])
def dtype(request: pytest.FixtureRequest) -> str:
  """The name of a dtype whose convolutions oneDNN computes here."""
  if request.param not in compiler.onednn_dtypes():
    pytest.skip(f'this jaxlib and processor hand no convolutions of {request.param} to oneDNN')
  return request.param


def random(*shape: int, dtype: str, seed: int = 0) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def near(results: Any, expected: Any, tolerance: float) -> None:
  """Assert that arrays are equal but for ``tolerance`` of the largest value of each."""
  for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
    b = np.asarray(b, np.float64)
    np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=tolerance * np.abs(b).max())


def gradients(conv: Any, strides: int, x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
  """Return a convolution and its gradients, given that of the result."""
  y, pull = jax.vjp(lambda x, kernel: conv(x, kernel, strides), x, kernel)
  return y, *pull(g)


def compute_expected_gradients(strides: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Return ``gradients`` of the plain form in float32, by Eigen."""
  plain = jax.jit(functools.partial(gradients, ops.conv, strides), compiler_options=OFF)
  return plain(*(array.astype(jnp.float32) for array in arrays))


def case(kernel: int, strides: int, inputs: int, outputs: int, size: tuple[int, int], batch: int, dtype: str) -> Any:
  """Return images, a kernel and a gradient of the result."""
  result = [-(-pixels // strides) for pixels in size]
  return (
    random(batch, *size, inputs, dtype=dtype),
    random(kernel, kernel, inputs, outputs, dtype=dtype, seed=1),
    random(batch, *result, outputs, dtype=dtype, seed=2),
  )


@pytest.mark.parametrize(('kernel', 'strides', 'inputs', 'outputs', 'size', 'batch'), CASES)
def test_a_convolution_and_its_gradients_are_those_of_the_plain_form(
  kernel: int, strides: int, inputs: int, outputs: int, size: tuple[int, int], batch: int, dtype: str
) -> None:
  arrays = case(kernel, strides, inputs, outputs, size, batch, dtype)
  program = compiler.jit(functools.partial(gradients, cpu.conv_cpu, strides)).lower(*arrays).compile()
  results = program(*arrays)
  near(results, compute_expected_gradients(strides, *arrays), NEAR[dtype])
  assert onednn.count_calls(program.as_text()) >= 2
  assert ' convolution(' not in program.as_text()
  jax.tree.map(np.testing.assert_array_equal, program(*arrays), results)


@pytest.mark.parametrize('batch', [64, 96, 127, 128])
def test_the_parts_of_a_batch_are_added_in_float32(batch: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(cpu, 'MAX_BYTES', 1)
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  x, _, g = case(3, 1, 16, 16, (8, 8), batch, dtype)
  parts = cpu.count_parts(x, g)
  assert parts == {'float32': {64: 4, 96: 6, 127: 1, 128: 8}, 'bfloat16': {64: 2, 96: 3, 127: 1, 128: 4}}[dtype][batch]
  program = compiler.jit(lambda x, g: cpu.kernel_gradient(x, g, 1, 3)).lower(x, g).compile()
  assert onednn.count_calls(program.as_text()) == parts
  error = np.asarray(program(x, g), np.float64) - np.asarray(kernel_gradient_of_plain(x, g), np.float64)
  scale = np.abs(np.asarray(kernel_gradient_of_plain(x, g))).max()
  assert np.abs(error).max() <= scale * {'float32': 1e-5, 'bfloat16': 2**-8}[dtype] * (parts > 1 or 1)


def kernel_gradient_of_plain(x: jax.Array, g: jax.Array) -> jax.Array:
  kernel = jnp.zeros((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
  return compute_expected_gradients(1, x, kernel, g)[2]


def test_the_form_without_onednn_is_the_one_of_two_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
  x, g = random(4, 8, 8, 3, dtype='float32'), random(4, 8, 8, 5, dtype='float32', seed=1)
  ranks = {}
  for dtypes in (frozenset(), frozenset({'float32'})):
    monkeypatch.setattr(cpu, 'onednn_dtypes', lambda dtypes=dtypes: dtypes)
    jaxpr = str(jax.make_jaxpr(lambda x, g: cpu.kernel_gradient(x, g, 1, 3))(x, g))
    ranks[dtypes] = re.findall(r'window_strides=(\(.*?\))', jaxpr)
  assert ranks == {frozenset(): ['(1, 1)'], frozenset({'float32'}): ['(1, 1, 1)']}


@pytest.mark.parametrize('strides', [1, 2])
def test_both_forms_are_the_same_gradient_whatever_computes_them(strides: int, monkeypatch: pytest.MonkeyPatch) -> None:
  for size in (1, 3, 7):
    x, kernel, g = case(size, strides, 5, 6, (9, 8), 32, 'float32')
    expected = compute_expected_gradients(strides, x, kernel, g)[2]
    for dtypes in (frozenset(), frozenset({'float32'})):
      monkeypatch.setattr(cpu, 'onednn_dtypes', lambda dtypes=dtypes: dtypes)
      run = jax.jit(lambda x, g, size=size: cpu.kernel_gradient(x, g, strides, size), compiler_options=OFF)
      near(run(x, g), expected, 1e-5)


class Step:
  """A training step of two stages, and what it is called with."""

  def __init__(self, dtype: str, devices: int = 1, steps: int = 1, accumulate: int = 1):
    rng = np.random.default_rng(0)
    arrays = Arrays(rng.integers(0, 256, (64, 16, 16, 3), np.uint8), rng.integers(0, 4, 64).astype(np.int32))
    pipeline, tx = Resident(arrays, batch_size=32, seed=0), optax.sgd(0.1)
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ('data',))
    pipeline.place(mesh)
    model = ResNet((1, 1), (16, 32), blocks.BasicBlock, 4, stem_type='cifar', dtype=jnp.dtype(dtype))
    loss_fn = make_loss(model, classification(INFO), augment.make(), INFO)
    program = make_train_steps(loss_fn, lambda _: tx, pipeline.get_batch, mesh, accumulate=accumulate)
    variables = jax.device_get(compiler.jit(lambda: init_variables(model, (16, 16, 3), KEY))())
    self.start = lambda: jax.device_put(create(variables, tx), sharding.replicated_sharding(mesh))
    feeds = jax.tree.map(lambda *x: np.stack(x), *pipeline.step_inputs(0, steps))
    self.rest = (
      KEY,
      pipeline.device_data,
      sharding.make_global_arrays(feeds, sharding.scan_sharding(mesh)),
      Hyperparameters(),
      None,
    )
    self.compiled = program.lower(self.start(), *self.rest).compile()

  def run(self) -> Any:
    """Return parameters and loss after the step, in host memory."""
    after, sums = self.compiled(self.start(), *self.rest)
    return jax.device_get((after.params, sums['loss']))


@pytest.mark.parametrize(
  'options',
  [{}, {'devices': 8}, {'steps': 2}, {'accumulate': 2}, {'devices': 2, 'steps': 2}],
  ids=['one', 'split', 'scan', 'parts', 'split-scan'],
)
def test_a_step_holds_the_convolutions_of_onednn_and_no_other(dtype: str, options: dict[str, int]) -> None:
  step = Step(dtype, **options)
  assert onednn.count_calls(step.compiled.as_text()) >= 14  # six, and their gradients but for products
  assert ' convolution(' not in step.compiled.as_text()
  first = step.run()
  jax.tree.map(np.testing.assert_array_equal, step.run(), first)
  if options == {'devices': 8}:
    alone = Step(dtype, **options | {'devices': 1}).run()
    near(first, alone, {'float32': 1e-4, 'bfloat16': 3e-2}[dtype])


def test_a_vmapped_gradient_is_that_of_each(dtype: str) -> None:
  several = [jnp.stack(arrays) for arrays in zip(*(case(3, 1, 8, 8, (8, 8), 4, dtype) for _ in range(3)), strict=True)]
  several[0] = several[0] * jnp.arange(1, 4, dtype=dtype).reshape(3, 1, 1, 1, 1)
  run = compiler.jit(jax.vmap(functools.partial(gradients, cpu.conv_cpu, 1)))
  for i in range(3):
    expected = compute_expected_gradients(1, *(array[i] for array in several))
    near([result[i] for result in run(*several)], expected, NEAR[dtype])


def test_an_exported_network_names_no_library_and_computes_the_same(dtype: str) -> None:
  model = ResNet((1,), (16,), blocks.BasicBlock, 4, stem_type='cifar', dtype=jnp.dtype(dtype))
  variables, x = init_variables(model, (16, 16, 3), KEY), random(4, 16, 16, 3, dtype='float32')
  run = compiler.jit(lambda x: model.apply(variables, x, train=False))
  exported = jax.export.export(jax.jit(lambda x: model.apply(variables, x, train=False)))(x)
  assert 'onednn' not in exported.mlir_module()
  assert onednn.count_calls(run.lower(x).compile().as_text()) == 3
  again = jax.export.deserialize(exported.serialize())
  near(run(x), again.call(x), NEAR[dtype])
