"""Eight virtual CPU devices for every test, so that sharding is tested with no GPU."""

import importlib.metadata
import os
import shutil
import tempfile

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
# Eight devices wait for each other, and after 40 s abort, which is too soon on a busy machine. A jaxlib that does not
# know the flag ends the process, and only 0.10 is known to know it.
os.environ['XLA_FLAGS'] += ' --xla_cpu_collective_call_terminate_timeout_seconds=600' * importlib.metadata.version(
  'jaxlib'
).startswith('0.10.')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'PYTEST_XDIST_WORKER' not in os.environ:  # nothing of the user's is read or written; workers share what is compiled
  os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='jaxres-cache-')
  # What one test compiles no other compiles again, nor another worker or a child process, however small it is. Set
  # JAX_COMPILATION_CACHE_DIR to keep programs from one run of the tests to the next.
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(os.environ['XDG_CACHE_HOME'], 'programs'))
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import functools
import pathlib
from collections.abc import Callable, Iterator
from types import ModuleType

import jaxtyping
import numpy as np
import pytest

from tests import checked  # noqa: F401 - by its name below

# What these modules promise of shapes and dtypes is checked at each call.
CHECKED = (
  *('jaxres.models.ops', 'jaxres.models.cpu'),
  *(f'jaxres.data.augment.{name}' for name in ('geometry', 'mixing', 'pixels', 'policies')),
)
jaxtyping.install_import_hook(CHECKED, 'tests.checked.check')
STRICT = ('models/', 'data/augment/', 'test_losses.py', 'test_metrics.py', 'test_state.py')


def pytest_unconfigure() -> None:
  """Leave no cache behind."""
  if 'PYTEST_XDIST_WORKER' not in os.environ and '/jaxres-cache-' in (cache := os.environ['XDG_CACHE_HOME']):
    shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture(autouse=True, scope='module')
def few_programs_at_a_time() -> Iterator[None]:
  """Forget what a module compiled: all of it together would take gigabytes."""
  yield
  import jax

  jax.clear_caches()


@pytest.fixture(autouse=True, scope='module')
def quick_programs(request: pytest.FixtureRequest) -> Iterator[None]:
  """Compile with few optimizations, on two of the eight devices, unless the module is marked otherwise.

  ``optimized`` marks a module or a test where exact numbers or the compiled program are the subject,
  ``eight_devices`` a module where sharding is.
  """
  import jax

  marks = {mark.name for mark in request.node.iter_markers()}
  with pytest.MonkeyPatch.context() as patch:
    if 'eight_devices' not in marks:
      devices = jax.devices()[:2]
      patch.setattr(jax, 'devices', lambda backend=None: devices)
      patch.setattr(jax, 'device_count', lambda backend=None: len(devices))
    if 'optimized' not in marks:
      patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # of child processes
      jax.config.update('jax_disable_most_optimizations', True)
    yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(autouse=True)
def all_optimizations(request: pytest.FixtureRequest) -> Iterator[None]:
  """Compile as for a user in one test that is marked ``optimized``."""
  import jax

  before = jax.config.read('jax_disable_most_optimizations')
  if 'optimized' in request.keywords:
    jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
  """Let no dtype or rank be promoted in silence by the functions that ``STRICT`` names the tests of."""
  import jax

  if not str(request.path.relative_to(pathlib.Path(__file__).parent)).startswith(STRICT):
    yield
    return
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    yield


@pytest.fixture(autouse=True)
def no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
  """Draw no curves at the end of a run, which takes half a second each time, but in tests with the mark ``curves``."""
  if 'curves' not in request.keywords:
    from jaxres.log import console

    monkeypatch.setattr(console, 'draw_curves', lambda workdir, *_: workdir / 'curves.png')


@pytest.fixture(autouse=True)
def float32_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
  """Compute in float32 on every CPU: what is expected is exact."""
  from jaxres.models import dtypes

  monkeypatch.setattr(dtypes, 'BFLOAT16_ON_CPUS', False)


@pytest.fixture
def npz(tmp_path: pathlib.Path) -> Callable[..., str]:
  """A function that writes arrays, those of ``make_arrays`` unless told otherwise, and returns the file's path."""

  def write(**arrays: np.ndarray) -> str:
    from tests.helpers import make_arrays

    path = tmp_path / 'data.npz'
    np.savez(path, **(arrays or make_arrays()))
    return str(path)

  return write


@pytest.fixture(scope='session')
def tfds_dir() -> str:
  """The directory with CIFAR-10 as a TFDS array_record set."""
  directory = os.environ.get('JAXRES_TFDS_DIR')
  if not directory:
    pytest.skip('JAXRES_TFDS_DIR is not set: no CIFAR-10 at hand')
  return directory


@pytest.fixture
def full_precision() -> Iterator[None]:
  """Multiply in float32 where the device would rather use TF32 or bfloat16."""
  import jax

  with jax.default_matmul_precision('highest'):
    yield


@pytest.fixture(scope='session')
def reference() -> ModuleType:
  """Return tests/torch_models.py, or skip where torch is not installed."""
  pytest.importorskip('torch')
  from tests import torch_models

  return torch_models


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
  """The name of a model that compiles in a second: one block of 8 channels."""
  from jaxres.models import blocks, resnet

  model = functools.partial(resnet.ResNet, (1,), (8,), blocks.BasicBlock, stem_type='cifar')
  monkeypatch.setitem(resnet.MODELS, 'tiny', model)
  return 'tiny'


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> str:
  """The name of a model of three stages, one block of 8 channels each."""
  from jaxres.models import blocks, resnet

  model = functools.partial(resnet.ResNet, (1,) * 3, (8,) * 3, blocks.BasicBlock, stem_type='cifar')
  monkeypatch.setitem(resnet.MODELS, 'stages', model)
  return 'stages'


@pytest.fixture
def config(npz, tiny: str) -> dict:
  return {
    'model': {'name': tiny},
    'data': {'name': 'arrays', 'path': npz(), 'batch_size': 16},
    'augment': {'crop_pad': 1, 'flip': True},
    'optim': {'lr': 0.1},
    'train': {'epochs': 4, 'eval_batch_size': 16, 'log_every_steps': 2},
  }
