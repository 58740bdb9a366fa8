"""What all tests of models need."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.models import references


@pytest.fixture(autouse=True)
def _precise(full_precision: None) -> None:
  """Compare with torch, which multiplies in float32."""


@pytest.fixture
def by_torch(request: pytest.FixtureRequest) -> Callable[..., tuple[references.Arrays, Callable[[Any], np.ndarray]]]:
  """Return what tells torch's arrays, and what to pick of others to compare: all, or where torch is missing a sample.

  It is called with the name of the case and the function that has torch compute them.
  """

  def tell(case: str, compute: Callable[[], references.Arrays]) -> Any:
    plugins = request.config.pluginmanager.get_plugins()
    if recorder := next((plugin for plugin in plugins if isinstance(plugin, references.Recorder)), None):
      return recorder.add(case, compute), np.asarray
    kept = references.read_stored().get(case)
    slow = request.node.get_closest_marker('slow')
    if importlib.util.find_spec('torch') is None:
      if slow:
        pytest.skip('torch is not installed, and of slow cases nothing is stored')
      assert kept is not None, f'{case} is not stored: run python -m tests.models.references where torch is installed'
      return kept, references.sample
    arrays = compute()
    if not slow:
      assert kept is not None, f'{case} is not stored: run python -m tests.models.references'
      references.assert_as_stored(arrays, kept)
    return arrays, np.asarray

  return tell
