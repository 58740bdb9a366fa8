"""What several tests share."""

from jaxres import tasks


def classification(loss: str = 'softmax_xent', **fields: float) -> tasks.Task:
  """Return the task of telling classes."""
  return tasks.make('classification', loss=loss, **fields)
