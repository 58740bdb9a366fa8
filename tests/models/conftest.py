"""What all tests of models need."""

import importlib
import pathlib
from collections.abc import Iterator
from types import ModuleType

import jax
import pytest

TESTS = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
  """Multiply in float32 where the device would rather use TF32 or bfloat16."""
  with jax.default_matmul_precision('highest'):
    yield


@pytest.fixture(scope='session')
def reference() -> ModuleType:
  """Return tests/torch_models.py, or skip where torch is not installed."""
  pytest.importorskip('torch')
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(TESTS)
    return importlib.import_module('torch_models')
