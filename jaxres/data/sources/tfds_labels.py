"""The labels of an encoded TFDS split: reading them means reading every record, so they are kept in a file."""

import concurrent.futures
import contextlib
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxres.errors import print_status
from jaxres.files import complete
from jaxres.npz import load_npz
from jaxres.runtime.environment import cache_dir

_CHUNK = 256  # records that are read at a time


class Labels(NamedTuple):
  """The labels of a split's N records."""

  labels: np.ndarray  # int32 [N], of each record
  order: np.ndarray  # int64 [N], the records by their ids


def read(folder: pathlib.Path, split: str, source: Any) -> Labels:
  """Return the labels of a TFDS data source, from the file that keeps them where there is one.

  A file that is damaged is written again; one that cannot be written is no error.

  Args:
    folder: of the data set's version.
    split: its name.
    source: of the split; its images are not decoded.

  Raises:
    OSError: records are empty, as those of a file that was cut off between two blocks are.
  """
  file = cache_file(folder, split)
  labels = _read_cache(file, len(source))
  if labels is None:
    if len(source) > 10_000:
      print_status(f'reading the labels of {len(source):,} {split} examples of {folder}, once: they are kept in {file}')
    labels = _read(source)
    with contextlib.suppress(OSError), complete(file) as part:
      np.savez(part, labels=labels.labels, order=labels.order)
  return labels


def cache_file(folder: pathlib.Path, split: str) -> pathlib.Path:
  """Return where the labels of a split are kept: the name changes with the set's metadata and the time of writing."""
  info = folder / 'dataset_info.json'
  key = (str(folder.resolve()), split, str(info.stat().st_mtime_ns), info.read_text('utf-8'))
  digest = hashlib.sha256('\0'.join(key).encode('utf-8', 'surrogateescape')).hexdigest()
  return cache_dir('labels') / f'{digest[:32]}.npz'


def _read_cache(file: pathlib.Path, size: int) -> Labels | None:
  try:
    labels, order = load_npz(file, 'labels', 'order').values()
  except ValueError:
    return None
  if labels.dtype != np.int32 or order.dtype != np.int64 or not labels.shape == order.shape == (size,):
    return None
  if not np.array_equal(np.sort(order), np.arange(size)):
    return None
  return Labels(labels, order)


def _read(source: Any) -> Labels:
  def get(start: int) -> list[tuple[int, Any]]:
    examples = source.__getitems__(range(start, min(start + _CHUNK, len(source))))
    return [_label(example) for example in examples]

  with concurrent.futures.ThreadPoolExecutor() as pool:
    rows = [row for chunk in pool.map(get, range(0, len(source), _CHUNK)) for row in chunk]
  return Labels(np.array([label for label, _ in rows], np.int32), by_id([example_id for _, example_id in rows]))


def _label(example: dict[str, Any]) -> tuple[int, Any]:
  check_complete([example])
  return int(example['label']), example.get('id')


def check_complete(examples: Sequence[dict[str, Any]]) -> None:
  """Raise an OSError where an example is empty: a file cut off between two blocks is read without an error."""
  empty = sum(None in example.values() for example in examples)
  if empty:
    raise OSError(f'{empty} of {len(examples)} examples are empty')


def by_id(ids: Sequence[Any]) -> np.ndarray:
  """Return the order of examples by their ids, int64 ``[N]``; as they are where they have none.

  Ids that are paths are in the order of a walk: by folder, then by file. Ids are bytes, or numbers.
  """
  if not ids or ids[0] is None:
    return np.arange(len(ids))
  key = lambda at: ids[at].split(b'/') if isinstance(ids[at], bytes) else ids[at]
  return np.array(sorted(range(len(ids)), key=key), np.int64)
