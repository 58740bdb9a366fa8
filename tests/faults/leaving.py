"""A config of a run that leaves the training while a save is under way, in the background.

JAXRES_LEAVE is how (``error``, ``exit`` or ``interrupt``), at which save from the start, and the file that gets its
step: ``error,2,/tmp/left``.
"""

import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxres import checkpoint
from tests.faults import tiny

WAYS = {'error': RuntimeError('left'), 'exit': SystemExit(3), 'interrupt': KeyboardInterrupt()}


def get_config() -> ConfigDict:
  """Return the config."""
  way, number, file = os.environ['JAXRES_LEAVE'].split(',')
  save, left = checkpoint.save, [int(number)]

  def save_and_leave(manager: Any, state: Any, *args: Any, **options: Any) -> None:
    save(manager, state, *args, **options)
    left[0] -= 1
    if left[0] < 0:
      pathlib.Path(file).write_text(str(int(state.step)))
      raise WAYS[way]

  checkpoint.save = save_and_leave
  return tiny.get_config()
