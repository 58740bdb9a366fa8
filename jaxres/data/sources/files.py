"""Examples that are image files."""

import os
import re
from collections.abc import Iterable, Sequence

import numpy as np

from jaxres.data import decode
from jaxres.data.types import Encoded
from jaxres.paths import read_regular

SPLITS = ('train', 'val', 'test')


def sort_classes(names: Iterable[str], split_rule: int = 2) -> tuple[str, ...]:
  """Return the names of classes in the order of their labels: by value where all are integers, else by the alphabet.

  Args:
    names: each once.
    split_rule: 2; 1 is by the alphabet always, as folders were once read.
  """
  by_value = split_rule > 1 and all(re.fullmatch(r'-?[0-9]{1,18}', name) for name in names)
  return tuple(sorted(names, key=lambda name: (int(name), name) if by_value else (0, name)))


def make_encoded(paths: Sequence[str], labels: Sequence[int], names: Sequence[str], split_rule: int) -> Encoded:
  """Return the examples of image files.

  Args:
    paths: of the files.
    labels: int, of each.
    names: by which a split is drawn, from rule 2 on.
    split_rule: of ``data.load``.
  """

  def read(index: int) -> bytes:
    return read_regular(paths[index], decode.MAX_FILE_BYTES)

  def size(index: int) -> int:
    try:
      return os.stat(paths[index]).st_size
    except OSError:
      return -1

  drawn_by = names if split_rule > 1 else None
  return Encoded(np.array(labels, np.int32), np.arange(len(paths)), paths.__getitem__, read, drawn_by, size)
