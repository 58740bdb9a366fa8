"""The resident pipeline: all of a split on every device, as uint8, and gathered by index inside the jit."""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxres.data import sampler
from jaxres.data.types import Arrays
from jaxres.runtime import sharding as sharding_lib

Batch = dict[str, jax.Array]


class Resident:
  """One split, ready to be trained on or evaluated.

  A pipeline is what a jitted step is given: ``device_data``, the same at every step, and one *feed* a step. Inside the
  jit ``get_batch(constants, feed)`` makes the batch of the two. Here the constants are the data and a feed is indices.

  Where the run has several processes, a feed has the rows of this one alone, once the pipeline is placed.

  Attributes:
    constants: ``image`` uint8 ``[N, H, W, C]`` and ``label`` ``[N, ...]``. An argument of the jit, never closed over:
      a closed-over array loses its sharding.
    size: N, the number of examples.
    image_shape: H, W, C.
    mesh: the devices that a batch is split over; None before ``place``.
  """

  mesh: Mesh | None = None
  name_of: Callable[[int], str] | None = None  # the file of an example, where it is one

  def __init__(self, arrays: Arrays, *, batch_size: int, seed: int):
    self.device_data = {'image': arrays.images, 'label': arrays.labels}
    self.size = len(arrays.images)
    self.image_shape: tuple[int, int, int] = arrays.images.shape[1:]
    self.batch_size = batch_size
    self.seed = seed

  def place(self, mesh: Mesh) -> None:
    """Put ``device_data`` on every device of ``mesh``."""
    self.mesh = mesh
    self.device_data = sharding_lib.make_global_arrays(self.device_data, sharding_lib.replicated_sharding(mesh))

  def step_inputs(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the feeds of steps ``start`` to ``stop - 1``: ``index`` int32 ``[B]``."""
    rows = sharding_lib.local_rows(self.batch_size, self.mesh)
    for step in range(start, stop):
      yield {'index': sampler.train_indices(self.seed, step, self.batch_size, self.size)[rows]}

  def eval_inputs(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield feeds of every example once: ``index`` int32 ``[B]`` and ``mask`` bool ``[B]``."""
    rows = sharding_lib.local_rows(batch_size, self.mesh)
    for index, mask in sampler.eval_indices(batch_size, self.size):
      yield {'index': index[rows], 'mask': mask[rows]}

  def get_images(self, index: np.ndarray) -> np.ndarray:
    """Return the images at ``index``, int ``[M]``, as evaluation sees them: uint8 ``[M, H, W, C]`` on the host."""
    return np.asarray(self.device_data['image'][index])

  @staticmethod
  def get_batch(device_data: Mapping[str, jax.Array], feed: Mapping[str, jax.Array]) -> Batch:
    """Return ``image`` uint8 ``[B, H, W, C]``, ``label`` ``[B, ...]``, and the feed's ``mask`` where it has one."""
    index = feed['index']
    batch = {name: jnp.take(array, index, axis=0, mode='clip') for name, array in device_data.items()}
    return batch | {'mask': feed['mask']} if 'mask' in feed else batch
