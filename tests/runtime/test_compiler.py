"""Compute dtypes and compiler options, on this backend and on pretended ones."""

import pathlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import models
from jaxres.errors import InputError
from jaxres.models import cpu
from jaxres.models.dtypes import resolve_dtype
from jaxres.runtime import compiler, onednn, xla_flags
from jaxres.runtime.compiler import _cpu_options, enable_compilation_cache
from jaxres.runtime.memory import explain_oom
from jaxres.state import init_variables

OFF = {'xla_cpu_experimental_ynn_fusion_type': ''}
on_cpu = pytest.mark.skipif(jax.default_backend() != 'cpu', reason='the options are for XLA:CPU')


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
  """Forget the options found, before and after each test."""
  for known in (_cpu_options, onednn._find_dtypes):
    known.cache_clear()
  yield
  for known in (_cpu_options, onednn._find_dtypes):
    known.cache_clear()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A cache directory of the user's, and a JAX that was not told of any."""
  before = jax.config.values['jax_compilation_cache_dir']
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  jax.config.update('jax_compilation_cache_dir', None)
  yield tmp_path / 'cache'
  jax.config.update('jax_compilation_cache_dir', before)


def test_programs_are_kept_in_the_users_cache_for_each_kind_of_processor(cache: pathlib.Path, monkeypatch) -> None:
  actual = set()
  for processor in ('flags: avx2', 'flags: avx2 avx512f'):
    monkeypatch.setattr(onednn, 'processor', lambda processor=processor: processor)
    jax.config.update('jax_compilation_cache_dir', None)
    enable_compilation_cache()
    actual.add(jax.config.values['jax_compilation_cache_dir'])
  assert len(actual) == 2
  assert {pathlib.Path(path).parent for path in actual} == {cache / 'jaxres' / 'programs'}


def test_a_directory_that_jax_was_told_is_kept_and_one_that_cannot_be_made_is_no_error(cache: pathlib.Path) -> None:
  jax.config.update('jax_compilation_cache_dir', '/elsewhere')
  enable_compilation_cache()
  assert jax.config.values['jax_compilation_cache_dir'] == '/elsewhere'
  jax.config.update('jax_compilation_cache_dir', None)
  cache.write_text('a file')
  enable_compilation_cache()
  assert jax.config.values['jax_compilation_cache_dir'] is None


def pretend(patch: pytest.MonkeyPatch, name: str) -> None:
  patch.setattr(jax, 'default_backend', lambda: name)


@pytest.mark.parametrize('name', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('device', ['cpu', 'gpu'])
def test_resolve_dtype_by_name(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
  pretend(monkeypatch, device)
  assert resolve_dtype(name) == jnp.dtype(name)


@pytest.mark.parametrize(('device', 'name'), [('cpu', 'float32'), ('gpu', 'bfloat16'), ('tpu', 'bfloat16')])
def test_auto_dtype_follows_the_device(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
  pretend(monkeypatch, device)
  assert resolve_dtype('auto') == jnp.dtype(name)


@pytest.mark.parametrize(
  ('name', 'nearest'),
  [
    ('bfloat', "did you mean 'bfloat16'?"),
    ('floa32', "did you mean 'float32'?"),
    ('Auto', "did you mean 'auto'?"),
    ('int8', 'known: auto, bfloat16, float16, float32'),
  ],
)
def test_unknown_dtype_is_an_input_error(name: str, nearest: str) -> None:
  with pytest.raises(InputError) as error:
    resolve_dtype(name)
  assert repr(name) in str(error.value)
  assert str(error.value).endswith(nearest)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('device', ['gpu', 'tpu'])
def test_no_compiler_options_elsewhere(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
  pretend(monkeypatch, device)
  assert compiler.compiler_options() == {}


@on_cpu
def test_this_jaxlib_knows_the_option() -> None:
  assert compiler.compiler_options() == {'xla_cpu_experimental_ynn_fusion_type': ''}


@on_cpu
def test_what_the_user_says_of_the_option_stands(monkeypatch: pytest.MonkeyPatch) -> None:
  flag = '--xla_cpu_experimental_ynn_fusion_type='
  for value, options in (('LIBRARY_FUSION_TYPE_REDUCE', {}), ('', {'xla_cpu_experimental_ynn_fusion_type': ''})):
    monkeypatch.setenv('XLA_FLAGS', f'--xla_cpu_enable_fast_math=false {flag}{value}')
    _cpu_options.cache_clear()
    others = {name: value for name, value in compiler.compiler_options().items() if name != xla_flags.ONEDNN}
    assert others == options


def test_a_function_is_jitted_with_the_options_at_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
  asked = []
  monkeypatch.setattr(compiler, 'compiler_options', lambda: asked.append(1) or {})
  double = compiler.jit(lambda x, times: x * times, static_argnames='times')
  assert asked == []
  assert [float(double(1.5, times=2)), float(double(2.5, times=2))] == [3.0, 5.0]
  assert asked == [1]
  assert double.lower(1.5, times=2).compile()(1.5) == 3.0


@on_cpu
@pytest.mark.optimized
def test_what_runs_once_has_the_bits_of_what_runs_often() -> None:
  model = models.create('resnet20', num_classes=4, dtype='float32')
  init = lambda key: init_variables(model, (8, 8, 3), key)
  often, once = (compiler.jit(init, runs_once=runs_once)(jax.random.key(3)) for runs_once in (False, True))
  jax.tree.map(np.testing.assert_array_equal, often, once)


@on_cpu
def test_a_function_jitted_with_options_is_a_part_of_other_programs() -> None:
  square = compiler.jit(lambda x: (x * x).sum())
  assert jax.grad(square)(3.0) == 6.0
  assert jax.jit(lambda x: square(x) + 1)(3.0) == compiler.jit(lambda x: square(x) + 1)(3.0) == 10.0
  np.testing.assert_array_equal(jax.vmap(square)(jnp.arange(3.0)), [0, 1, 4])
  assert jax.eval_shape(square, jnp.ones(3)).shape == ()


@on_cpu
@pytest.mark.parametrize(
  'unknown',
  [
    {'xla_cpu_no_such_option': 'LIBRARY_FUSION_TYPE_REDUCE'},
    {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_NO_SUCH'},
  ],
  ids=['name', 'value'],
)
def test_no_options_where_jaxlib_refuses_them(unknown: dict[str, str], monkeypatch, tmp_path) -> None:
  # the refusal is jaxlib's own, of an option that no jaxlib knows
  jit, asked = jax.jit, []

  def older_jit(fun: Callable[..., Any], *, compiler_options: dict[str, str]) -> Any:
    asked.append(compiler_options)
    return jit(fun, compiler_options=unknown)

  monkeypatch.setattr(jax, 'jit', older_jit)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))  # what was tried before is not known
  assert compiler.compiler_options() == {}
  assert asked[0] == OFF
  assert all(xla_flags.ONEDNN in options for options in asked[1:])


@on_cpu
def test_options_leave_the_values_as_they_are() -> None:
  rng = np.random.default_rng(0)
  x = rng.normal(0, 1, (4, 16, 16, 8)).astype(np.float32)
  kernel = rng.normal(0, 1, (3, 3, 8, 16)).astype(np.float32)

  def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
    y = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    y = (y - y.mean((0, 1, 2))) * jax.lax.rsqrt(y.var((0, 1, 2)) + 1e-5)
    return jnp.mean(jnp.tanh(y) ** 2)

  step = jax.value_and_grad(loss)
  plain = jax.jit(step)(kernel, x)
  fast = jax.jit(step, compiler_options=compiler.compiler_options())(kernel, x)
  assert np.abs(plain[1]).max() > 1e-4
  np.testing.assert_allclose(fast[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(fast[1], plain[1], rtol=1e-4, atol=1e-4 * np.abs(plain[1]).max())


@on_cpu
def test_options_are_detected_once(monkeypatch: pytest.MonkeyPatch) -> None:
  first = compiler.compiler_options()

  def jit(*_: Any, **__: Any) -> None:
    raise AssertionError('compiled again')

  monkeypatch.setattr(jax, 'jit', jit)
  assert compiler.compiler_options() == first


def test_materialize_changes_no_value_and_no_gradient() -> None:
  x = jax.random.normal(jax.random.key(0), (64, 64))
  x = x.at[0, :4].set(jnp.array([jnp.inf, -0.0, 1e-37, 3e38]))
  anchor = jnp.full((3, 3), -7.5)
  value, pull = jax.vjp(jax.jit(cpu.materialize), x, anchor)
  np.testing.assert_array_equal(value, x)
  gradient, of_anchor = pull(x)
  np.testing.assert_array_equal(gradient, x)
  assert not of_anchor.any()


def test_materialize_has_both_modes_of_differentiation() -> None:
  x = jnp.arange(6.0).reshape(2, 3)
  value, tangent = jax.jvp(lambda x: cpu.materialize(x, x) ** 2, (x,), (jnp.ones_like(x),))
  np.testing.assert_array_equal(value, x**2)
  np.testing.assert_array_equal(tangent, 2 * x)
  assert jax.hessian(lambda x: cpu.materialize(x, x).sum() ** 2)(x).shape == (2, 3, 2, 3)


def test_materialize_outlives_the_compiler() -> None:
  compiled = jax.jit(lambda x, k: jnp.exp(cpu.materialize(x, k))).lower(jnp.ones((8, 8)), jnp.ones(3)).compile()
  assert 'divide(' in compiled.as_text()


def test_materialize_is_nothing_on_other_backends(monkeypatch) -> None:
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  x = jnp.ones(3)
  assert cpu.materialize(x, x) is x


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc alone has mallopt')
def test_freed_memory_is_kept() -> None:
  code = """
import ctypes, resource, sys
from jaxres.runtime.memory import keep_freed_memory
if sys.argv[1] == 'keep':
  keep_freed_memory()
libc = ctypes.CDLL('libc.so.6')
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
def use(times):
  for _ in range(times):
    block = libc.malloc(64 << 20)
    libc.memset(block, 1, 64 << 20)
    libc.free(block)
use(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use(8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
  run = lambda mode: subprocess.run([sys.executable, '-c', code, mode], capture_output=True, text=True, check=True)
  pages = 8 * (64 << 20) // resource.getpagesize()
  assert int(run('plain').stdout) >= pages
  assert int(run('keep').stdout) < pages / 100


def test_a_lack_of_memory_is_one_line() -> None:
  size = 10**8
  with pytest.raises(InputError) as caught, explain_oom('a step of 8 examples', 'use 4'):
    jnp.zeros((size, size)).block_until_ready()  # beyond any address space
  actual = f'Out of memory allocating {4 * size**2} bytes'
  assert str(caught.value) == f'a step of 8 examples: the memory of the device is too small: {actual}; use 4'


def test_other_errors_of_the_device_pass() -> None:
  with pytest.raises(jax.errors.JaxRuntimeError, match='INVALID'), explain_oom('x', 'y'):
    raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: x')
