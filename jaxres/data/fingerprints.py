"""The fingerprint of a split: what a run must find again to go on."""

import concurrent.futures
import hashlib
from collections.abc import Iterator

import numpy as np

from jaxres.data import sampler
from jaxres.data.types import Arrays, Encoded, Split

MAX_BYTES = 256 << 20  # of encoded images of a split that are read for it: half a second
_CHUNK = 256  # files that are read at a time
_THREADS = 8
_LENGTH = 12  # hexadecimal digits that are kept of a digest


def fingerprint(split: Split) -> str:
  """Return the number of examples, and digests of their labels, names, sizes and contents, in their order.

  The contents of arrays are their pixels. Those of encoded images are their bytes: of all, or, where these are more
  than ``MAX_BYTES``, of as many as that, drawn at random but always the same, and the digest says of how many.
  Files have names, and sizes, of all of them.
  """
  labels = np.ascontiguousarray(split.labels, '<f4' if split.labels.dtype.kind == 'f' else '<i4')
  shape = [str(labels.shape).encode()] if labels.ndim > 1 else []
  parts = [f'{len(labels):,} examples', f'labels {_digest(*shape, labels.tobytes())}']
  if isinstance(split, Arrays):
    return ', '.join([*parts, f'contents {_digest(str(split.images.shape).encode(), split.images)}'])
  names = split.order_names
  if names is not None:
    parts.append(f'names {_digest(*(name.encode("utf-8", "surrogateescape") + b"%c" % 0 for name in names))}')
  if split.size is not None:
    sizes = np.array([split.size(key) for key in split.keys.tolist()], '<i8')
    parts.append(f'sizes {_digest(sizes.tobytes())}')
  return ', '.join([*parts, f'contents {_contents(split)}'])


def differences(old: str, new: str) -> tuple[str, str]:
  """Return the parts of two fingerprints that differ, such as ``'96 examples, names 0f3a'``, empty where none does.

  What ``old`` does not have, as that of an older jaxres, is not compared.
  """
  before, after = _parts(old), _parts(new)
  changed = [kind for kind, part in before.items() if after.get(kind) != part]
  return ', '.join(before[kind] for kind in changed), ', '.join(after[kind] for kind in changed if kind in after)


def same_names(one: str, other: str) -> bool:
  """Return whether two fingerprints have the same names of examples, as far as both have names."""
  names = [_parts(text).get('names') for text in (one, other)]
  return None in names or names[0] == names[1]


def _parts(text: str) -> dict[str, str]:
  """Return the parts of a fingerprint by their kind: the one word in each of ``96 examples, labels 0f3a``."""
  count, *rest = text.split(', ')
  return {'examples': count} | {part.partition(' ')[0]: part for part in rest}


def _contents(split: Encoded) -> str:
  """Return the digest of the encoded images; of a sample of them it says how many."""
  total, count, total_hash = 0, 0, hashlib.sha256()
  for digest, size in _read(split):
    total_hash.update(digest)
    total, count = total + size, count + 1
    if total >= MAX_BYTES:
      break
  sample = f' of {count:,}' if count < len(split.labels) else ''
  return total_hash.hexdigest()[:_LENGTH] + sample


def _read(split: Encoded) -> Iterator[tuple[bytes, int]]:
  """Yield digest and size of the images in an order drawn once and for all; an image that cannot be read has none."""
  names = split.order_names
  size = len(split.labels)
  places = sampler.permutation(0, 0, size) if names is None else sampler.order_by_name(names, 0, 'contents')

  def read(at: int) -> tuple[bytes, int]:
    try:
      data = split.read_at(at)
    except OSError:
      return b'', 0
    return hashlib.sha256(data).digest(), len(data)

  with concurrent.futures.ThreadPoolExecutor(_THREADS, 'fingerprint') as pool:
    for start in range(0, size, _CHUNK):
      yield from pool.map(read, places[start : start + _CHUNK].tolist())


def _digest(*parts: bytes | np.ndarray) -> str:
  digest = hashlib.sha256()
  for part in parts:
    digest.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
  return digest.hexdigest()[:_LENGTH]
