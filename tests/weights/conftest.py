"""What the tests of weights need."""

import numpy as np
import pytest

from tests.weights.files import make_state


@pytest.fixture(autouse=True)
def _precise(full_precision: None) -> None:
  """Compare with torch, which multiplies in float32."""


@pytest.fixture
def tiny_state(tiny) -> dict[str, np.ndarray]:
  """The state dict of the network `tiny`, torchvision's names, random."""
  return make_state(classes=4)
