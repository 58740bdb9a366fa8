import jax
import numpy as np
import pytest

from jaxres.data import sampler
from jaxres.data.resident import Resident
from jaxres.data.types import Arrays
from jaxres.runtime import sharding

pytestmark = pytest.mark.eight_devices


def make(size: int = 50, batch_size: int = 16) -> tuple[Arrays, Resident]:
  rng = np.random.default_rng(0)
  arrays = Arrays(rng.integers(0, 256, (size, 4, 4, 3)).astype(np.uint8), np.arange(size, dtype=np.int32))
  return arrays, Resident(arrays, batch_size=batch_size, seed=3)


def test_batches_are_the_rows_of_the_order() -> None:
  arrays, pipeline = make()
  for step, feed in enumerate(pipeline.step_inputs(2, 9), 2):
    batch = jax.jit(pipeline.get_batch)(pipeline.device_data, feed)
    index = sampler.train_indices(3, step, 16, 50)
    np.testing.assert_array_equal(batch['label'], index)
    np.testing.assert_array_equal(batch['image'], arrays.images[index])
    assert batch['image'].dtype == np.uint8
    assert 'mask' not in batch


def test_evaluation_batches_hold_each_example_once() -> None:
  _, pipeline = make()
  batches = [jax.jit(pipeline.get_batch)(pipeline.device_data, feed) for feed in pipeline.eval_inputs(24)]
  labels = np.concatenate([np.asarray(b['label'])[np.asarray(b['mask'])] for b in batches])
  np.testing.assert_array_equal(labels, np.arange(50))


def test_the_gathered_batch_is_split_over_the_devices() -> None:
  _, pipeline = make()
  mesh = sharding.make_mesh()
  pipeline.place(mesh)
  assert pipeline.device_data['image'].sharding.is_fully_replicated
  get_batch = jax.jit(
    pipeline.get_batch, in_shardings=(sharding.replicated_sharding(mesh), sharding.batch_sharding(mesh))
  )
  batch = get_batch(pipeline.device_data, next(pipeline.step_inputs(0, 1)))
  assert {shard.data.shape for shard in batch['image'].addressable_shards} == {(2, 4, 4, 3)}
