"""What several tests share."""

import pytest

from jaxres import data, tasks
from jaxres.checkpoint.manager import Manager


def classification(info: data.Info, loss: str = 'softmax_xent', **fields: float) -> tasks.Task:
  """Return the task of telling the classes of ``info``."""
  return tasks.make(
    'classification', info, **({'loss': loss, 'label_smoothing': 0.0, 'target_threshold': 0.0} | fields)
  )


def save_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
  """Have checkpoints saved without the digest of ``data.json``, as an older jaxres saved them."""
  monkeypatch.setattr(Manager, 'data', property(lambda _: None, lambda *_: None))
