"""What several tests share."""

from jaxres import data, tasks


def classification(info: data.Info, loss: str = 'softmax_xent', **fields: float) -> tasks.Task:
  """Return the task of telling the classes of ``info``."""
  return tasks.make(
    'classification', info, **({'loss': loss, 'label_smoothing': 0.0, 'target_threshold': 0.0} | fields)
  )
