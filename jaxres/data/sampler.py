"""The order of the samples: a pure function of the seed and the step, so that resuming needs no iterator state.

The order is one concatenation of per-epoch permutations, and step ``s`` takes ``[s * B, (s + 1) * B)`` of it: no
remainder is dropped, and the order depends neither on the batch size nor on the number of devices.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  """Return the permutation of ``range(size)`` of one epoch, int32 ``[size]``.

  Made of the raw bits of a Philox generator, which NumPy keeps the same in every release (NEP 19), and a stable sort.
  """
  bits = np.random.Philox(key=[seed, epoch]).random_raw(size)
  order = np.argsort(bits, kind='stable').astype(np.int32)
  order.flags.writeable = False
  return order


def train_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
  """Return which of ``size`` examples step ``step`` trains on, int32 ``[batch_size]``."""
  start, stop = step * batch_size, (step + 1) * batch_size
  epochs = range(start // size, (stop - 1) // size + 1)
  order = np.concatenate([permutation(seed, epoch, size) for epoch in epochs])
  offset = epochs.start * size
  return order[start - offset : stop - offset]


def eval_indices(batch_size: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yield every example once, in order, in batches of one shape.

  Yields:
    ``index`` int32 ``[batch_size]`` and ``mask`` bool ``[batch_size]``: False where the last batch is filled up.
  """
  for start in range(0, size, batch_size):
    index = np.arange(start, start + batch_size, dtype=np.int32)
    yield np.minimum(index, size - 1), index < size


def order_by_name(names: Sequence[str], seed: int, use: str) -> np.ndarray:
  """Return the permutation of ``range(N)`` that sorts examples by a hash of their names, int64 ``[N]``.

  Which of two examples comes first depends on their own names alone, so that adding or removing another moves neither
  before the other.

  Args:
    names: of the N examples, each its own.
    seed: of the draw.
    use: what is drawn, such as ``'test'``: each has its own order.
  """
  salt = f'{seed}\0{use}\0'.encode()
  digests = [hashlib.sha256(salt + name.encode('utf-8', 'surrogateescape')).digest() for name in names]
  return np.array(sorted(range(len(names)), key=lambda at: (digests[at], names[at])), np.int64)


def assign_folds(labels: np.ndarray, count: int, seed: int, shuffled: np.ndarray | None = None) -> np.ndarray:
  """Return which of ``count`` random folds each example is in, int ``[N]``.

  Folds differ by at most one example, and so do their examples of each class.

  Args:
    labels: int ``[N]``.
    count: how many folds.
    seed: of the draw.
    shuffled: the order that the examples are drawn in, int ``[N]``; None is ``permutation`` of the seed.
  """
  order = permutation(seed, 0, len(labels)) if shuffled is None else shuffled
  by_class = order[np.argsort(labels[order], kind='stable')]
  fold_of = np.empty(len(labels), int)
  fold_of[by_class] = np.arange(len(labels)) % count
  return fold_of


def draw_stratified(labels: np.ndarray, size: int, seed: int, shuffled: np.ndarray | None = None) -> np.ndarray:
  """Return the sorted indices of ``size`` random examples with the classes in the proportions of ``labels``.

  Each class gets its share rounded down; what is left goes to the classes with the largest remainders.

  Args:
    labels: int ``[N]``.
    size: how many, at most N.
    seed: of the draw.
    shuffled: the order that the examples are drawn in, int ``[N]``; None is ``permutation`` of the seed.
  """
  classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
  shares = size * counts / len(labels)
  quota = np.floor(shares).astype(int)
  rest = np.argsort(quota - shares, kind='stable')[: size - quota.sum()]
  quota[rest] += 1
  order = permutation(seed, 0, len(labels)) if shuffled is None else shuffled
  members = (order[inverse[order] == k] for k in range(len(classes)))
  return np.sort(np.concatenate([m[:q] for m, q in zip(members, quota, strict=True)]))
