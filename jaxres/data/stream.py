"""The stream pipeline: batches made on host threads ahead of the device, for what the device cannot hold."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxres.data import sampler
from jaxres.data.resident import Batch
from jaxres.runtime import sharding as sharding_lib

Feed = dict[str, np.ndarray]
Draws = Sequence[Sequence[float]]
Get = Callable[[int, Draws | None], tuple[np.ndarray, int | np.ndarray]]
AHEAD = 2  # batches in the making while one is trained on
ATTEMPTS = 10  # of a random crop to fit its image
_CHUNK = 8  # examples that a thread takes at a time


class Examples(NamedTuple):
  """What a ``Stream`` reads: N examples, and how to get one."""

  size: int
  image_shape: tuple[int, int, int]  # height, width, channels
  get: Get  # an index, and the draws of a random crop or None, to uint8 [H, W, C] and the label; threads call it
  label_shape: tuple[int, ...] = ()  # of the label of one example
  label_dtype: np.typing.DTypeLike = np.int32


class Stream:
  """One split, ready to be trained on or evaluated; ``Resident`` says what a pipeline is.

  A feed is the batch itself. The samples, and with the same ``seed`` their order, are those of ``Resident``. Memory
  is bounded: there are never more than ``AHEAD + 1`` batches that have not been yielded. A generator of feeds stops
  its threads when it ends, is closed or is dropped.

  Attributes:
    constants: empty.
    size: N, the number of examples.
    image_shape: H, W, C.
    mesh: the devices that a batch is split over; None before ``place``.
  """

  mesh: Mesh | None = None
  name_of: Callable[[int], str] | None = None  # the file of an example, where it is one

  def __init__(self, examples: Examples, *, batch_size: int, seed: int, workers: int):
    self.device_data: dict[str, jax.Array] = {}
    self.examples = examples
    self.size = examples.size
    self.image_shape = examples.image_shape
    self.batch_size = batch_size
    self.seed = seed
    self.workers = workers

  def place(self, mesh: Mesh) -> None:
    """Read from now on only what the devices of this process need; no data stays on them."""
    self.mesh = mesh

  def step_inputs(self, start: int, stop: int) -> Iterator[Feed]:
    """Yield the batches of steps ``start`` to ``stop - 1``.

    Yields:
      ``image`` uint8 ``[B, H, W, C]`` and ``label`` ``[B, ...]``.
    """
    rows = sharding_lib.local_rows(self.batch_size, self.mesh)
    return self._prefetch(
      (
        sampler.train_indices(self.seed, step, self.batch_size, self.size)[rows],
        crop_draws(self.seed, step, self.batch_size)[rows],
        {},
      )
      for step in range(start, stop)
    )

  def eval_inputs(self, batch_size: int) -> Iterator[Feed]:
    """Yield batches of every example once, with ``mask`` bool ``[B]``; the last is filled up with the last example."""
    rows = sharding_lib.local_rows(batch_size, self.mesh)
    tasks = sampler.eval_indices(batch_size, self.size)
    return self._prefetch((index[rows], None, {'mask': mask[rows]}) for index, mask in tasks)

  def get_images(self, index: np.ndarray) -> np.ndarray:
    """Return the images at ``index``, int ``[M]``, as evaluation sees them: uint8 ``[M, H, W, C]``."""
    images = [self.examples.get(int(i), None)[0] for i in index]
    return np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8)

  def get_crops(self, index: np.ndarray, step: int) -> np.ndarray:
    """Return the images at ``index``, int ``[B]``, with the random crops of ``step``: uint8 ``[B, H, W, C]``."""
    return next(self._prefetch(iter([(index, crop_draws(self.seed, step, len(index)), {})])))['image']

  @staticmethod
  def get_batch(device_data: Mapping[str, jax.Array], feed: Mapping[str, jax.Array]) -> Batch:
    """Return the batch, which is the feed."""
    return dict(feed)

  def _prefetch(self, tasks: Iterator[tuple[np.ndarray, np.ndarray | None, Feed]]) -> Iterator[Feed]:
    """Yield the batch of each task, in order, with the next ``AHEAD`` in the making."""
    pool = concurrent.futures.ThreadPoolExecutor(self.workers, 'stream')
    pending: collections.deque[tuple[Feed, list[concurrent.futures.Future[None]]]] = collections.deque()
    try:
      for index, draws, extra in tasks:
        # A new batch each time: on a CPU, JAX may use the memory of the array that it is given.
        image = np.empty((len(index), *self.examples.image_shape), np.uint8)
        label = np.empty((len(index), *self.examples.label_shape), self.examples.label_dtype)
        feed: Feed = {'image': image, 'label': label, **extra}
        chunks = range(0, _count(feed), _CHUNK)
        pending.append((feed, [pool.submit(self._fill, feed, index, draws, at) for at in chunks]))
        if len(pending) > AHEAD:
          yield _wait_and_pad(*pending.popleft())
      while pending:
        yield _wait_and_pad(*pending.popleft())
    finally:
      pool.shutdown(cancel_futures=True)

  def _fill(self, feed: Feed, index: np.ndarray, draws: np.ndarray | None, start: int) -> None:
    """Get a chunk of a batch's examples."""
    for row in range(start, min(start + _CHUNK, _count(feed))):
      chosen = None if draws is None else draws[row].tolist()
      feed['image'][row], feed['label'][row] = self.examples.get(int(index[row]), chosen)


def crop_draws(seed: int, step: int, batch_size: int) -> np.ndarray:
  """Return the uniform numbers in ``[0, 1)`` of a step's random crops, float64 ``[batch_size, ATTEMPTS, 4]``.

  Row ``i`` is a function of the seed, the step and ``i`` alone: raw bits of a Philox generator, as the sample order's,
  from a part of its period that the order does not reach.
  """
  bits = np.random.Philox(key=[seed, step], counter=[0, 0, 0, 1]).random_raw(batch_size * ATTEMPTS * 4)
  return (bits >> np.uint64(11)).reshape(batch_size, ATTEMPTS, 4) * 2.0**-53


def _count(feed: Feed) -> int:
  """Return how many examples of a batch are not there to fill it up; those come last."""
  return int(feed['mask'].sum()) if 'mask' in feed else len(feed['label'])


def _wait_and_pad(feed: Feed, futures: list['concurrent.futures.Future[None]']) -> Feed:
  """Wait for a batch, raise what its threads raised, and fill it up with its last example, or with zeros."""
  for future in futures:
    future.result()
  count = _count(feed)
  for array in (feed['image'], feed['label']):
    array[count:] = array[count - 1] if count else 0  # no row of this process is an example
  return feed
